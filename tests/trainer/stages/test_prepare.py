"""Prepare as a pod runs it: model and rows from claims, ConfigMaps, a hub and a bucket; reuse; every refusal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import train_tokenizer
from tests.trainer.families import save
from tests.waiting import wait_for_server

from finetune_trainer.__main__ import main
from finetune_trainer.contract import pipeline
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pod import ENV_MOUNTS, ENV_RUN_FILE, ENV_SCRATCH, ENV_TERMINATION_LOG, TERMINATION_LIMIT
from finetune_trainer.contract.reports import StepResult, Termination
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.store.entries import Provenance, open_store
from finetune_trainer.store.files import folder_digest, parse_files

ROOT = Path(__file__).parents[3]
ROWS = [{"prompt": f"What is number {n}?", "completion": f"It is {n} times one."} for n in range(40)]
Prepare = Callable[..., tuple[int, Termination]]


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    return tmp_path / "mounts"


@pytest.fixture
def pod(tmp_path: Path, mounts: Path) -> Callable[[RunConfig], dict[str, str]]:
    """Write the run file and return the environment that a pod has."""

    def write(run: RunConfig) -> dict[str, str]:
        (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
        (tmp_path / "termination").write_text("")
        return {
            ENV_RUN_FILE: str(tmp_path / "run.json"),
            ENV_MOUNTS: str(mounts),
            ENV_SCRATCH: str(tmp_path / "scratch"),
            ENV_TERMINATION_LOG: str(tmp_path / "termination"),
        }

    return write


@pytest.fixture
def prepare(
    tmp_path: Path,
    pod: Callable[[RunConfig], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Prepare]:
    """Run the step prepare in this process and return its exit status and termination message."""

    def start(run: RunConfig) -> tuple[int, Termination]:
        for name, value in pod(run).items():
            monkeypatch.setenv(name, value)
        status = main(["prepare"])
        return status, outcome(tmp_path / "termination", capsys.readouterr().out)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("HF_HOME", "")  # so that what the step sets is taken back
    yield start
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def prepare_pod(tmp_path: Path, pod: Callable[[RunConfig], dict[str, str]]) -> Prepare:
    """The same as a process of its own, with an environment of its own."""

    def start(run: RunConfig, **environment: str) -> tuple[int, Termination]:
        given = pod(run) | {"PYTHONPATH": str(ROOT / "trainer_image"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "finetune_trainer", "prepare"],
            env={**os.environ, **given, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, outcome(tmp_path / "termination", done.stdout)

    return start


def outcome(message: Path, printed: str) -> Termination:
    """The termination message, after a look at its length and at the lines printed."""
    text = message.read_text()
    assert len(text.encode()) <= TERMINATION_LIMIT
    assert all(json.loads(line)["kind"] == "progress" for line in printed.splitlines())
    return Termination.model_validate_json(text)


def put_rows(mounts: Path, rows: list[Any], name: str = "rows.jsonl") -> None:
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (mounts / "claims" / "data" / name).write_text(text)


def succeeded(outcome: tuple[int, Termination]) -> StepResult:
    status, termination = outcome
    assert status == ExitCode.OK, termination
    assert termination.result is not None
    return termination.result


def refused(outcome: tuple[int, Termination], code: ExitCode, reason: str) -> str:
    status, termination = outcome
    assert termination.failure is not None, termination
    assert (status, termination.failure.reason) == (code, reason), termination
    return termination.failure.message


def entries(mounts: Path, kind: str) -> list[Path]:
    return sorted((mounts / "claims" / "store" / "job" / kind).glob("*/manifest.json"))


# ── What it makes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_facts_rows_and_samples(make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path) -> None:
    put_rows(mounts, ROWS)
    result = succeeded(prepare(make_run()))
    assert result.model is not None
    assert (result.model.architecture, result.model.digest[:7]) == ("LlamaForCausalLM", "sha256:")
    assert result.dataset is not None
    counts = (result.dataset.train_rows, result.dataset.validation_rows, result.dataset.test_rows)
    assert counts == (36, 0, 4)
    assert (result.dataset.format, result.dataset.dropped_rows) == ("PromptCompletion", 0)
    assert result.fit is not None
    assert result.fit.micro_batch_size in (1, 2, 4)
    assert result.done == ()
    (manifest,) = entries(mounts, "data")
    folder = manifest.parent / json.loads(manifest.read_text())["prefix"]
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 36
    assert sum(len(row["input_ids"]) for row in rows) == result.dataset.train_tokens
    assert max(len(row["input_ids"]) for row in rows) <= result.dataset.longest_row_tokens
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    assert samples[0]["learned"].endswith("times one.<|im_end|>")
    assert (folder / "validation.jsonl").read_text() == ""


def test_what_is_hardly_meant_is_reported_also_where_the_rows_are_reused(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path
) -> None:
    put_rows(mounts, ROWS)
    assert succeeded(prepare(make_run(training={"maxSteps": 9, "globalBatchSize": 4}))).warnings is None
    few = make_run(training={"maxSteps": 9, "globalBatchSize": 64, "learningRate": 1})
    assert [w.reason for w in succeeded(prepare(few)).warnings or ()] == ["BatchAboveRows", "HighLearningRate"]
    (manifest,) = entries(mounts, "data")
    assert "warnings" not in manifest.read_text()


def test_parameters_are_those_of_the_model(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path, tiny_model: Path
) -> None:
    from transformers import AutoModelForCausalLM

    put_rows(mounts, ROWS)
    result = succeeded(prepare(make_run()))
    assert result.model is not None
    assert result.model.parameters == AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()


def test_a_second_run_makes_nothing_and_reports_the_same(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path
) -> None:
    put_rows(mounts, ROWS)
    first = succeeded(prepare(make_run()))
    before = {path: path.read_bytes() for kind in ("model", "data") for path in entries(mounts, kind)}
    assert succeeded(prepare(make_run())) == first
    assert before == {path: path.read_bytes() for kind in ("model", "data") for path in entries(mounts, kind)}
    assert len(before) == 2


def test_the_fit_follows_the_training_though_the_rows_are_reused(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path
) -> None:
    put_rows(mounts, ROWS)
    training = {"method": "LoRA", "precision": "FP32", "maxSteps": 2, "globalBatchSize": 4, "maxLength": 128}
    succeeded(prepare(make_run()))
    result = succeeded(prepare(make_run(training=training | {"microBatchSize": 2, "gradientCheckpointing": "Full"})))
    assert result.fit is not None
    assert (result.fit.micro_batch_size, result.fit.gradient_checkpointing) == (2, "Full")
    assert len(entries(mounts, "data")) == 1


def test_finished_steps_are_reported_in_order(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path, tmp_path: Path
) -> None:
    put_rows(mounts, ROWS)
    run = make_run()
    first = succeeded(prepare(run))
    assert first.model is not None
    assert first.dataset is not None
    fingerprints = pipeline.fingerprints(run, first.model, first.dataset)
    store = open_store(run.store, str(mounts))
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_text("x")
    for name in ("merge", "train"):
        result = StepResult(step=name, fingerprint=fingerprints[name], model=first.model)
        store.commit(name, "1", tmp_path / "made", result, Provenance(name, {}, {}))
    done = succeeded(prepare(run)).done
    assert [(r.step, r.fingerprint, r.model) for r in done] == [(n, fingerprints[n], None) for n in ("train", "merge")]
    (mounts / "claims/store/job/train" / fingerprints["train"] / "1" / "file").unlink()
    assert [r.step for r in succeeded(prepare(run)).done] == ["merge"]


@pytest.mark.parametrize(("window", "found"), [(None, True), (8, False)])
def test_results_of_windowed_models_from_before_packed_attention_had_windows_are_not_found_again(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path, tmp_path: Path, window: int | None, found: bool
) -> None:
    put_rows(mounts, ROWS)
    tokenizer = train_tokenizer()
    ends = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    tokenizer.save_pretrained(save("mistral", mounts / "claims/models/mistral", sliding_window=window, **ends))
    run = make_run(model={"uri": "pvc://models/mistral"})
    first = succeeded(prepare(run))
    assert first.model is not None
    assert first.dataset is not None
    assert (first.model.cached_numbers is None) is (window is not None)
    assert first.model.context_tokens
    before = pipeline.fingerprints(run, first.model.model_copy(update={"plain_attention_tokens": None}), first.dataset)
    result = StepResult(step="train", fingerprint=before["train"], model=first.model)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_text("x")
    open_store(run.store, str(mounts)).commit("train", "1", tmp_path / "made", result, Provenance("train", {}, {}))
    assert [r.step for r in succeeded(prepare(run)).done] == (["train"] if found else [])


def test_rows_from_a_config_map_and_test_rows_of_their_own(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path
) -> None:
    folder = mounts / "configmaps" / "facts"
    (folder / "..2026").mkdir(parents=True)  # as the kubelet mounts it: keys are links into a hidden folder
    for key, rows in (("train.jsonl", ROWS[:30]), ("test.jsonl", ROWS[30:])):
        (folder / "..2026" / key).write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / key).symlink_to(f"..2026/{key}")
    dataset = {"uri": "configmap://facts/train.jsonl", "test": {"uri": "configmap://facts/test.jsonl"}}
    result = succeeded(prepare(make_run(dataset=dataset)))
    assert result.dataset is not None
    assert (result.dataset.train_rows, result.dataset.test_rows) == (30, 10)
    whole = {"uri": "configmap://facts", "test": {"fraction": 0.2}}
    for dataset, counts in (
        (whole, (24, 6)),  # test.jsonl is not trained on
        (whole | {"test": {"split": "test"}}, (30, 10)),
        (whole | {"files": ["*.jsonl"]}, (32, 8)),
        (whole | {"split": "test"}, (8, 2)),
    ):
        result = succeeded(prepare(make_run(dataset=dataset)))
        assert result.dataset is not None
        assert (result.dataset.train_rows, result.dataset.test_rows) == counts


def test_preferences_are_rendered_with_both_answers(make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path) -> None:
    put_rows(mounts, [{"prompt": f"Number {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(20)])
    result = succeeded(prepare(make_run()))
    assert result.dataset is not None
    assert (result.dataset.format, result.dataset.train_rows, result.dataset.test_rows) == ("Preference", 18, 2)
    (manifest,) = entries(mounts, "data")
    folder = manifest.parent / json.loads(manifest.read_text())["prefix"]
    row = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    assert row["rejected"] == "No idea."
    assert 0 < row["prompt_tokens"] < len(row["input_ids"])
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [s["rejected"] for s in samples] == ["No idea.<|im_end|>"] * 2


def kto(make_run: Callable[..., RunConfig], objective: str = "KTO", **dataset: Any) -> RunConfig:
    training = {"method": "LoRA", "objective": objective, "maxLength": 128}
    return make_run(training=training, dataset={"uri": "pvc://data/rows.jsonl"} | dataset)


APART = [{"prompt": f"Number {n}?", "completion": f"It is {n}.", "label": n % 4 > 0} for n in range(40)]


def test_unpaired_preferences_keep_their_labels_and_are_scored_by_desirable_answers(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path
) -> None:
    put_rows(mounts, APART)
    result = succeeded(prepare(kto(make_run, validation={"fraction": 0.1})))
    assert result.dataset is not None
    assert result.dataset.format == "UnpairedPreference"
    assert (result.dataset.train_rows, result.dataset.validation_rows, result.dataset.test_rows) == (32, 4, 3)
    (manifest,) = entries(mounts, "data")
    folder = manifest.parent / json.loads(manifest.read_text())["prefix"]
    told = {name: read_column(folder / f"{name}.jsonl", "desirable") for name in ("train", "validation", "test", "samples")}
    assert (told["train"].count(False), told["validation"].count(False), told["test"]) == (8, 1, [True] * 3)
    assert len(told["samples"]) == 2


@pytest.mark.parametrize(("objective", "remedy"), [("SFT", "set it to KTO, or take rows"), ("DPO", "set it to KTO")])
def test_unpaired_preferences_are_for_kto_alone(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path, objective: str, remedy: str
) -> None:
    put_rows(mounts, APART)
    said = refused(prepare(kto(make_run, objective)), ExitCode.BAD_DATA, "ObjectiveNeedsOtherRows")
    assert f"spec.training.objective {objective} can't learn that: {remedy}" in said


def test_rows_of_one_kind_tell_kto_nothing(make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path) -> None:
    put_rows(mounts, [row | {"label": True} for row in APART])
    said = refused(prepare(kto(make_run)), ExitCode.BAD_DATA, "DatasetOneSided")
    assert said.startswith("spec.dataset: all 36 rows to train on have the label true")
    put_rows(mounts, APART)
    put_rows(mounts, [row for row in APART if not row["label"]], "test.jsonl")
    said = refused(prepare(kto(make_run, test={"uri": "pvc://data/test.jsonl"})), ExitCode.BAD_DATA, "DatasetOneSided")
    assert said.startswith("spec.dataset.test: none of the 10 rows has the label true")


def test_pairs_of_answers_are_asked_for_where_they_are_missing(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path
) -> None:
    """Also where another job has the rows already."""
    put_rows(mounts, ROWS)
    said = "spec.training.objective DPO learns from pairs of answers, but the rows are PromptCompletion: set it to SFT, or"
    dpo = make_run(training={"method": "LoRA", "objective": "DPO", "maxLength": 128})
    assert said in refused(prepare(dpo), ExitCode.BAD_DATA, "ObjectiveNeedsPreferences")
    succeeded(prepare(make_run(training={"method": "LoRA", "maxLength": 128})))
    assert said in refused(prepare(dpo), ExitCode.BAD_DATA, "ObjectiveNeedsPreferences")


def test_a_teacher_is_checked_counted_and_part_of_the_fingerprint(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path, tiny_model: Path
) -> None:
    def distilled(name: str) -> RunConfig:
        teacher = {"teacher": {"uri": f"pvc://models/{name}"}}
        return make_run(training={"method": "LoRA", "objective": "Distillation", "distillation": teacher, "maxLength": 128})

    put_rows(mounts, ROWS)
    said = refused(prepare(distilled("lost")), ExitCode.SOURCE_NOT_FOUND, "ModelNotFound")
    assert said.startswith("spec.training.distillation.teacher.uri: pvc://models/lost")
    folder = mounts / "claims" / "models" / "teacher"
    shutil.copytree(tiny_model, folder)
    result = succeeded(prepare(distilled("teacher")))
    assert result.model is not None
    assert result.dataset is not None
    assert result.fit is not None
    assert result.model.teacher_digest == result.model.digest  # here they are the same model
    assert result.fit.terms["teacher"] == 4 * result.model.parameters
    assert result.fit.predicted_bytes == sum(result.fit.terms.values())
    found = pipeline.fingerprints(distilled("teacher"), result.model, result.dataset)
    other = result.model.model_copy(update={"teacher_digest": "sha256:other"})
    assert found["train"] != pipeline.fingerprints(distilled("teacher"), other, result.dataset)["train"]
    (folder / "model.safetensors").write_bytes(b"")
    said = refused(prepare(distilled("teacher")), ExitCode.SOURCE_NOT_FOUND, "ModelChanged")
    assert said.startswith("spec.training.distillation.teacher.uri: model.safetensors at pvc://models/teacher")


def test_a_teacher_of_other_tokens_is_refused(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path, tiny_model: Path
) -> None:
    put_rows(mounts, ROWS)
    folder = mounts / "claims" / "models" / "teacher"
    shutil.copytree(tiny_model, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    distillation = {"teacher": {"uri": "pvc://models/teacher"}}
    run = make_run(training={"method": "LoRA", "objective": "Distillation", "distillation": distillation, "maxLength": 128})
    said = refused(prepare(run), ExitCode.BAD_CONFIG, "VocabulariesDiffer")
    assert said.startswith("spec.training.distillation.teacher has another vocabulary than spec.model")
    assert "2 of its tokens differ" in said


REVIEWS = [{"review": f"Number {n} is {'fine' if n % 4 else 'poor'}.", "stars": int(n % 4 > 0)} for n in range(40)]
STARS = {"text": "review", "label": "stars"}


def test_labels_are_answers_by_their_words(make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path) -> None:
    put_rows(mounts, REVIEWS)
    dataset = {"uri": "pvc://data/rows.jsonl", "columns": STARS, "labels": {"0": "bad", "1": "good"}}
    result = succeeded(prepare(make_run(dataset=dataset)))
    assert result.dataset is not None
    assert (result.dataset.format, result.dataset.labels, result.dataset.test_rows) == ("Classification", 2, 4)
    (manifest,) = entries(mounts, "data")
    folder = manifest.parent / json.loads(manifest.read_text())["prefix"]
    told = {name: read_column(folder / f"{name}.jsonl", "completion") for name in ("train", "test")}
    assert sorted(told["test"]) == ["bad", "good", "good", "good"], "one in four, as in all rows"
    assert set(told["train"]) == {"bad", "good"}


def read_column(file: Path, name: str) -> list[Any]:
    return [json.loads(line)[name] for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "dataset", "reason", "said"),
    [
        ("no word", {"labels": {"1": "good"}}, "DatasetLabelUnknown", "has the label 0, which spec.dataset.labels does not"),
        (
            "unseen",
            {"test": {"uri": "pvc://data/test.jsonl"}},
            "DatasetLabelUnknown",
            "dataset.test: test.jsonl line 1 has",
        ),
        ("stratify", {"test": {"fraction": 0.1, "stratifyBy": "age"}}, "DatasetColumnsUnknown", "test.stratifyBy names age"),
        ("no labels", {"columns": {"text": "review"}, "labels": {"1": "good"}}, "DatasetLabelsUnused", "but these are Text"),
    ],
)
def test_labels_that_do_not_fit(
    make_run: Callable[..., RunConfig],
    prepare: Prepare,
    mounts: Path,
    name: str,
    dataset: dict[str, Any],
    reason: str,
    said: str,
) -> None:
    put_rows(mounts, REVIEWS)
    put_rows(mounts, [{"review": "Odd.", "stars": 7}], "test.jsonl")
    run = make_run(dataset={"uri": "pvc://data/rows.jsonl", "columns": STARS} | dataset)
    assert said in refused(prepare(run), ExitCode.BAD_DATA, reason), name


# ── What it refuses ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "rows", "reason", "said"),
    [
        ("no rows", [], "DatasetEmpty", "no rows at pvc://data/rows.jsonl"),
        (
            "columns",
            [{"question": "a", "answer": "b"}],
            "DatasetColumnsUnknown",
            "columns question, answer: no format fits them; write spec.dataset.columns: {prompt: question, completion: answer}",
        ),
        ("not JSON", [ROWS[0], "{oops\n"], "DatasetUnreadable", "rows.jsonl line 2: not JSON"),
        ("too long", [{"prompt": "a " * 300, "completion": "b"}] * 3, "DatasetRowsTooLong", "3 of 3 rows have more than"),
        (
            "no answers",
            [{"prompt": "a", "completion": ""}] * 3,
            "DatasetEmpty",
            "none of 3 rows is left to train on: 3 NoAnswer",
        ),
        ("type", [{"prompt": "a", "completion": {}}], "DatasetRowInvalid", "line 1: completion must be text, not dict"),
    ],
)
def test_bad_rows(
    make_run: Callable[..., RunConfig],
    prepare: Prepare,
    mounts: Path,
    name: str,
    rows: list[Any],
    reason: str,
    said: str,
) -> None:
    put_rows(mounts, rows)
    message = refused(prepare(make_run()), ExitCode.BAD_DATA, reason)
    assert said in message, name
    assert entries(mounts, "data") == []


def test_the_length_that_is_named_is_enough(make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path) -> None:
    put_rows(mounts, ROWS + [{"prompt": "word " * (20 * n), "completion": "b"} for n in range(10, 20)])
    message = refused(prepare(make_run()), ExitCode.BAD_DATA, "DatasetRowsTooLong")
    length = int(message.partition("set maxLength to ")[2].split()[0])
    assert 128 < length < 2048
    training = {"method": "LoRA", "maxSteps": 2, "globalBatchSize": 4}
    result = succeeded(prepare(make_run(training=training | {"maxLength": length})))
    assert result.dataset is not None
    assert 0 < result.dataset.dropped_rows <= 0.05 * 50
    refused(prepare(make_run(training=training | {"maxLength": length - 1})), ExitCode.BAD_DATA, "DatasetRowsTooLong")


def test_what_does_not_go_together_is_told_before_anything_is_fetched(
    make_run: Callable[..., RunConfig], prepare: Prepare
) -> None:
    best = {"keepCheckpoint": "Best", "evaluateEverySteps": 1}
    run = make_run(training=best, devices={"gpus": 2, "strategy": "FSDP"}, model={"uri": "pvc://nowhere/model"})
    message = refused(prepare(run), ExitCode.BAD_CONFIG, "InvalidSpec")
    assert message.startswith("spec.training.keepCheckpoint Best needs all of the model on each rank; set it to Last")


@pytest.mark.parametrize(("rows", "test"), [(ROWS, {"fraction": 0}), (ROWS[:1], {"fraction": 0.1})])
def test_a_job_that_nothing_could_be_scored_of_ends_before_training(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path, rows: list[Any], test: dict[str, Any]
) -> None:
    put_rows(mounts, rows)
    run = make_run(dataset={"uri": "pvc://data/rows.jsonl", "test": test})
    assert "spec.dataset.test leaves no rows to score on" in refused(prepare(run), ExitCode.BAD_DATA, "NoTestRows")


def test_missing_rows_and_models(make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path) -> None:
    assert "pvc://data/rows.jsonl" in refused(prepare(make_run()), ExitCode.SOURCE_NOT_FOUND, "DatasetNotFound")
    put_rows(mounts, ROWS)
    lost = make_run(model={"uri": "pvc://models/lost"})
    assert "spec.model.uri: pvc://models/lost" in refused(prepare(lost), ExitCode.SOURCE_NOT_FOUND, "ModelNotFound")


@pytest.mark.parametrize(
    ("name", "harm", "reason", "said"),
    [
        ("pickles", "model.safetensors -> pytorch_model.bin", "ModelWithoutSafetensors", "convert its weights"),
        ("no config", "config.json -> gone", "ModelUnsupported", "no config.json"),
        ("no tokenizer", "tokenizer.json -> gone", "TokenizerUnsupported", "tokenizer"),
        ("cut", "cut", "ModelDamaged", "model.safetensors is cut short"),
    ],
)
def test_models_that_cannot_be_used(
    make_run: Callable[..., RunConfig],
    prepare: Prepare,
    mounts: Path,
    tiny_model: Path,
    name: str,
    harm: str,
    reason: str,
    said: str,
) -> None:
    put_rows(mounts, ROWS)
    folder = mounts / "claims" / "models" / "other"
    shutil.copytree(tiny_model, folder)
    if harm == "cut":
        with (folder / "model.safetensors").open("r+b") as stream:
            stream.truncate(1000_000)
    else:
        old, new = harm.split(" -> ")
        (folder / old).rename(folder / new)
    if name == "no tokenizer":
        (folder / "tokenizer_config.json").unlink()
    message = refused(prepare(make_run(model={"uri": "pvc://models/other"})), ExitCode.BAD_CONFIG, reason)
    assert said in message


def test_a_model_that_was_exchanged_on_its_claim(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path, tiny_model: Path
) -> None:
    put_rows(mounts, ROWS)
    folder = mounts / "claims" / "models" / "other"
    shutil.copytree(tiny_model, folder)
    run = make_run(model={"uri": "pvc://models/other"})
    succeeded(prepare(run))
    (folder / "model.safetensors").write_bytes(b"something else")
    assert "model.safetensors" in refused(prepare(run), ExitCode.SOURCE_NOT_FOUND, "ModelChanged")


def test_rows_that_were_exchanged_on_their_claim(make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path) -> None:
    """Nothing trains on the rows of before in silence; with the old rows back all is as it was."""
    put_rows(mounts, ROWS)
    first = succeeded(prepare(make_run()))
    put_rows(mounts, ROWS[1:])
    said = refused(prepare(make_run()), ExitCode.BAD_DATA, "RowsChanged")
    assert said.startswith(
        "spec.dataset: the rows at pvc://data/rows.jsonl are not those that this store's results were made of"
    )
    put_rows(mounts, ROWS)
    assert succeeded(prepare(make_run())).dataset == first.dataset


def test_what_does_not_fit_is_refused_before_a_gpu_is_taken(
    make_run: Callable[..., RunConfig], prepare: Prepare, mounts: Path
) -> None:
    put_rows(mounts, ROWS)
    small = make_run(devices={"gpus": 1, "memoryBytes": 1 << 30})
    assert "the device has 1.0 GiB" in refused(prepare(small), ExitCode.DOES_NOT_FIT, "DoesNotFit")


def test_a_broken_run_file(make_run: Callable[..., RunConfig], prepare: Prepare) -> None:
    broken = make_run().model_copy(update={"training": {"epochs": "many"}})
    with pytest.warns(UserWarning, match="serializ"):
        outcome = prepare(broken)
    assert "training.epochs" in refused(outcome, ExitCode.BAD_CONFIG, "RunConfigInvalid")


# ── The hub ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[str]:
    """URL of a hub that serves org/tiny, org/old (pickles), org/gated (token "let-me-in") and the dataset org/rows."""
    import torch
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("hub")
    shutil.copytree(tiny_model, folder / "org" / "tiny")
    (folder / "org" / "tiny" / "pytorch_model.bin").write_bytes(b"a pickle that nobody may load")
    shutil.copytree(tiny_model, folder / "org" / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(tiny_model / "model.safetensors"), folder / "org" / "old" / "pytorch_model.bin")
    shutil.copytree(tiny_model, folder / "org" / "gated")
    (folder / "org" / "gated" / ".gated").write_text("let-me-in\n")
    rows = folder / "datasets" / "org" / "rows" / "data"
    rows.mkdir(parents=True)
    (rows / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (rows.parent / "README.md").write_text(
        "---\nconfigs:\n- {config_name: main, data_files: data/rows.jsonl}\n"
        "- {config_name: apart, data_files: [{split: train, path: data/a.jsonl}, {split: test, path: data/b.jsonl}]}\n---\n"
    )
    (rows / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:9]))
    (rows / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[9:12]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "localcluster.hub", str(folder), "127.0.0.1", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_server(server, f"127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def test_model_and_rows_from_a_hub(
    make_run: Callable[..., RunConfig], prepare_pod: Prepare, mounts: Path, hub: str, tiny_model: Path
) -> None:
    run = make_run(model={"uri": "hf://org/tiny"}, dataset={"uri": "hf://org/rows", "subset": "main"})
    result = succeeded(prepare_pod(run, HF_ENDPOINT=hub))
    assert result.model is not None
    assert len(result.model.revision) == 40
    (manifest,) = entries(mounts, "model")
    folder = manifest.parent / json.loads(manifest.read_text())["prefix"]
    assert {p.name for p in folder.iterdir()} == {p.name for p in tiny_model.iterdir()} | {"files.json"}
    assert (folder / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    base = result.artifact
    assert base is not None, "the model can be served below adapters"
    assert (base.name, str(folder).endswith(base.path)) == ("base", True)
    assert base.digest == folder_digest(parse_files((folder / "files.json").read_bytes()))
    # Nothing is fetched a second time: no hub, same facts.
    assert succeeded(prepare_pod(run, HF_ENDPOINT="http://127.0.0.1:9")) == result


def test_pickles_from_a_hub_are_kept_as_safetensors(
    make_run: Callable[..., RunConfig], prepare_pod: Prepare, mounts: Path, hub: str, tiny_model: Path
) -> None:
    put_rows(mounts, ROWS)
    result = succeeded(prepare_pod(make_run(model={"uri": "hf://org/old", "weights": "Pickle"}), HF_ENDPOINT=hub))
    assert result.model is not None
    assert len(result.model.revision) == 40
    (manifest,) = entries(mounts, "model")
    folder = manifest.parent / json.loads(manifest.read_text())["prefix"]
    assert {p.name for p in folder.iterdir()} == {p.name for p in tiny_model.iterdir()} | {"files.json"}
    assert not list(mounts.parent.glob("scratch/prepare/**/*.bin"))


def test_a_subset_and_its_splits_from_a_hub(make_run: Callable[..., RunConfig], prepare_pod: Prepare, hub: str) -> None:
    dataset: dict[str, Any] = {"uri": "hf://org/rows", "subset": "apart", "test": {"split": "test"}}
    result = succeeded(prepare_pod(make_run(dataset=dataset), HF_ENDPOINT=hub))
    assert result.dataset is not None
    assert (result.dataset.train_rows, result.dataset.test_rows) == (9, 3)
    undecided = make_run(dataset={"uri": dataset["uri"]})
    message = refused(prepare_pod(undecided, HF_ENDPOINT=hub), ExitCode.BAD_DATA, "DatasetSubsetUnknown")
    assert message.endswith("the dataset has several subsets; name one of: apart, main")


def test_what_a_hub_refuses(make_run: Callable[..., RunConfig], prepare_pod: Prepare, mounts: Path, hub: str) -> None:
    put_rows(mounts, ROWS)
    lost = make_run(model={"uri": "hf://org/lost"})
    assert "org/lost" in refused(prepare_pod(lost, HF_ENDPOINT=hub), ExitCode.SOURCE_NOT_FOUND, "ModelNotFound")
    revision = make_run(model={"uri": "hf://org/tiny@v9"})
    assert "v9" in refused(prepare_pod(revision, HF_ENDPOINT=hub), ExitCode.SOURCE_NOT_FOUND, "ModelNotFound")
    gated = make_run(model={"uri": "hf://org/gated"})
    message = refused(prepare_pod(gated, HF_ENDPOINT=hub), ExitCode.SOURCE_DENIED, "ModelAccessDenied")
    assert "spec.model.secretRef" in message
    wrong = prepare_pod(gated, HF_ENDPOINT=hub, HF_TOKEN="wrong")
    assert "HF_TOKEN" in refused(wrong, ExitCode.SOURCE_DENIED, "ModelAccessDenied")
    succeeded(prepare_pod(gated, HF_ENDPOINT=hub, HF_TOKEN="let-me-in"))
    rows = make_run(dataset={"uri": "hf://org/none"})
    assert "spec.dataset.uri" in refused(prepare_pod(rows, HF_ENDPOINT=hub), ExitCode.SOURCE_NOT_FOUND, "DatasetNotFound")
