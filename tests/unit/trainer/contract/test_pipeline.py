"""The order of the steps, and which edit changes which fingerprint: what is worked on again, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import create_model

from finetune_trainer.contract import pipeline
from finetune_trainer.contract.reports import DatasetFacts, ModelFacts
from finetune_trainer.contract.run import RunConfig

MODEL = ModelFacts(revision="r", digest="sha256:m", parameters=1, architecture="Llama", bytes=1)
DATA = DatasetFacts(
    format="Text",
    train_digest="sha256:a",
    test_digest="sha256:b",
    train_rows=1,
    validation_rows=0,
    test_rows=1,
    dropped_rows=0,
    train_tokens=1,
    longest_row_tokens=1,
)
SPEC: dict[str, Any] = {
    "namespace": "team",
    "name": "job",
    "model": {"uri": "hf://org/model"},
    "dataset": {"uri": "pvc://data/rows.jsonl"},
    "training": {"method": "QLoRA"},
    "devices": {"gpus": 1},
    "artifacts": [
        {"name": "q4", "format": "GGUF", "quantization": "Q4_K_M"},
        {"name": "fp8", "format": "CompressedTensors", "quantization": "FP8"},
    ],
    "publish": [{"uri": "s3://bucket/out", "artifacts": ["q4"]}],
    "store": {"uri": "pvc://store/job"},
}


def run(**fields: Any) -> RunConfig:
    return RunConfig.model_validate(SPEC | fields)


def test_every_step_comes_after_what_it_needs() -> None:
    steps = pipeline.steps(run())
    names = [step.name for step in steps]
    assert names == [
        "prepare",
        "train",
        "merge",
        "quantize-q4",
        "quantize-fp8",
        "evaluate",
        "evaluate-q4",
        "publish-0",
    ]
    assert [step.stage for step in steps] == [name.partition("-")[0] for name in names]
    for position, step in enumerate(steps):
        assert set(step.needs) <= set(names[:position]), step
    assert [s.name for s in steps if s.needs_gpu] == ["train", "evaluate"]
    assert not any(s.needs_gpu for s in pipeline.steps(run(devices={"gpus": 0})))


def test_a_template_of_the_jobs_own_is_told_by_its_uri() -> None:
    def kept(key: str | None, uri: str = "hf://org/model") -> str:
        template = {"chatTemplate": {"configMapKeyRef": {"name": "chat", "key": key}}} if key else {}
        return pipeline.templated_fingerprint(run(model={"uri": uri} | template).model)

    names = [kept("a"), kept("b"), kept("a", "hf://org/other"), kept(None)]
    assert len(set(names)) == 4
    assert kept("a") == names[0]


def test_what_each_evaluation_scores() -> None:
    steps = {step.name: step for step in pipeline.steps(run())}
    assert pipeline.subjects(run(), steps["evaluate"]) == ("base", "merged", "fp8")
    assert pipeline.subjects(run(), steps["evaluate-q4"]) == ("q4",)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


ALL = set(pipeline.fingerprints(run(), MODEL, DATA))
TASKS: dict[str, Any] = {"tasks": {"named": [{"name": "arc"}], "files": {"uri": "pvc://benchmarks/arc"}}}
TEACHER = {"teacher": {"uri": "hf://org/large"}}
FROM_TRAIN = ALL - {"prepare", "evaluate/base"}
FROM_MERGE = FROM_TRAIN - {"train"}
ON_TASKS = {"evaluate", "evaluate/base", "evaluate/merged", "evaluate/fp8"}
SCORES = {name for name in ALL if name.startswith("evaluate")}


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("nothing", {}, set()),
        ("name and store", {"name": "other", "store": {"uri": "s3://bucket/x"}}, set()),
        ("GPU memory", {"devices": {"gpus": 1, "memoryBytes": 1 << 30}}, set()),
        ("credentials", {"model": {"uri": "hf://org/model", "secretRef": {"name": "x"}}}, set()),
        ("weights", {"model": {"uri": "hf://org/model", "weights": "Pickle"}}, set()),
        ("checkpoint interval", {"training": {"method": "QLoRA", "checkpoint": {"keep": 5}}}, set()),
        ("where losses are told", {"training": {"method": "QLoRA", "reportTo": ["tensorboard"]}}, set()),
        ("with which key", {"training": {"method": "QLoRA", "reportSecretRef": {"name": "x"}}}, set()),
        ("teacher", {"training": {"method": "QLoRA", "distillation": TEACHER}}, FROM_TRAIN),
        ("rank", {"training": {"method": "QLoRA", "lora": {"rank": 8}}}, FROM_TRAIN),
        ("merge base", {"merge_base": "Original"}, FROM_MERGE),
        ("scored rows", {"generation": {"samples": 10}}, SCORES),
        ("tasks", TASKS, ON_TASKS),
        ("engine", {"generation": {"engine": "VLLM"}}, {"evaluate"}),
        ("row length", {"training": {"method": "QLoRA", "maxLength": 64}}, FROM_TRAIN | {"prepare"}),
        ("data source's name alone", {"dataset": {"uri": "pvc://data/other.jsonl"}}, {"prepare"}),
        (
            "quantization",
            {"artifacts": [{"name": "q4", "format": "GGUF", "quantization": "Q5_K_M"}, SPEC["artifacts"][1]]},
            {"quantize-q4", "evaluate-q4", "evaluate/q4", "publish-0"},
        ),
        (
            "importance matrix",
            {"artifacts": [SPEC["artifacts"][0] | {"imatrix": True}, SPEC["artifacts"][1]]},
            {"quantize-q4", "evaluate-q4", "evaluate/q4", "publish-0"},
        ),
        (
            "one artifact more",
            {"artifacts": [*SPEC["artifacts"], {"name": "q8", "format": "GGUF", "quantization": "Q8_0"}]},
            {"quantize-q8", "evaluate-q8", "evaluate/q8"},
        ),
        ("target of publish", {"publish": [{"uri": "s3://bucket/new", "artifacts": ["q4"]}]}, {"publish-0"}),
    ],
)
def test_an_edit_changes_only_what_depends_on_it(name: str, fields: dict[str, Any], expected: set[str]) -> None:
    before = pipeline.fingerprints(run(), MODEL, DATA)
    assert changed(before, pipeline.fingerprints(run(**fields), MODEL, DATA)) == expected, name


@pytest.mark.parametrize(
    ("name", "model", "data", "expected"),
    [
        ("train rows", {}, {"train_digest": "sha256:x"}, FROM_TRAIN),
        ("test rows", {}, {"test_digest": "sha256:x"}, SCORES),
        ("counts alone", {}, {"dropped_rows": 7}, set()),
        ("model's content", {"digest": "sha256:x"}, {}, ALL),
        ("model's revision alone", {"revision": "s"}, {}, set()),
        ("teacher's content", {"teacher_digest": "sha256:x"}, {}, FROM_TRAIN),
        ("a window that no row is longer than", {"plain_attention_tokens": 1}, {}, set()),
        ("rows longer than a window", {"plain_attention_tokens": 1}, {"longest_row_tokens": 2}, FROM_TRAIN),
        ("soft caps or sinks", {"plain_attention_tokens": 0}, {}, FROM_TRAIN),
    ],
)
def test_what_the_sources_hold_decides(name: str, model: dict[str, Any], data: dict[str, Any], expected: set[str]) -> None:
    before = pipeline.fingerprints(run(), MODEL, DATA)
    after = pipeline.fingerprints(run(), MODEL.model_copy(update=model), DATA.model_copy(update=data))
    assert changed(before, after) == expected, name


def test_a_digest_stays_what_it_was_whatever_the_order_of_fields_and_the_letters() -> None:
    assert pipeline.digest({"b": 1, "a": "ü"}) == pipeline.digest({"a": "ü", "b": 1}) == "a24f772b6dfdbfe9bcd1"


def test_rows_longer_than_a_window_count_as_a_newer_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    windowed, long = MODEL.model_copy(update={"plain_attention_tokens": 1}), DATA.model_copy(update={"longest_row_tokens": 2})
    found = pipeline.fingerprints(run(), windowed, long)
    monkeypatch.setitem(pipeline.RECIPES, "train", pipeline.RECIPES["train"] + 1)
    assert pipeline.fingerprints(run(), MODEL, DATA)["train"] == found["train"]


@pytest.mark.parametrize(
    ("name", "task", "files", "digest", "expected"),
    [
        ("the files' content", {}, {}, "sha256:x", ON_TASKS),
        ("the files' place alone", {}, {"uri": "s3://bucket/arc"}, "sha256:t", set()),
        ("fewer rows", {"limit": 5}, {}, "sha256:t", ON_TASKS),
        ("shots", {"numFewshot": 5}, {}, "sha256:t", ON_TASKS),
    ],
)
def test_what_tasks_are_scored_by(
    name: str, task: dict[str, Any], files: dict[str, str], digest: str, expected: set[str]
) -> None:
    given = TASKS["tasks"]
    edited = {"named": [given["named"][0] | task], "files": given["files"] | files, "judged": ["arc/acc"]}
    before = pipeline.fingerprints(run(**TASKS), MODEL, DATA.model_copy(update={"tasks_digest": "sha256:t"}))
    after = pipeline.fingerprints(run(tasks=edited), MODEL, DATA.model_copy(update={"tasks_digest": digest}))
    assert changed(before, after) == expected, name


def test_a_digest_of_tasks_changes_nothing_without_tasks() -> None:
    before = pipeline.fingerprints(run(), MODEL, DATA)
    assert pipeline.fingerprints(run(), MODEL, DATA.model_copy(update={"tasks_digest": "sha256:t"})) == before


def test_the_kept_files_of_tasks_depend_on_place_and_names() -> None:
    def of(uri: str, *names: dict[str, Any]) -> str:
        tasks = run(tasks={"named": names, "files": {"uri": uri}}).tasks
        assert tasks is not None
        return pipeline.tasks_fingerprint(tasks)

    arc, mmlu = {"name": "arc"}, {"name": "mmlu"}
    assert of("pvc://a/b", arc, mmlu) == of("pvc://a/b", mmlu | {"limit": 3}, arc)
    assert len({of("pvc://a/b", arc, mmlu), of("pvc://a/b", arc), of("pvc://a/c", arc)}) == 3


def test_a_teacher_s_secret_changes_nothing() -> None:
    secret = {"teacher": TEACHER["teacher"] | {"secretRef": {"name": "x"}}}
    plain, opened = (run(training={"method": "QLoRA", "distillation": given}) for given in (TEACHER, secret))
    assert pipeline.fingerprints(plain, MODEL, DATA) == pipeline.fingerprints(opened, MODEL, DATA)
    assert pipeline.source_uris(plain)[:2] == (plain.model.uri, "hf://org/large")


@pytest.mark.parametrize("part", ["dataset", "training", "generation"])
def test_a_field_that_an_upgrade_brings_changes_nothing_until_it_is_set(part: str) -> None:
    old = getattr(run(), part)
    newer = create_model("Newer", __base__=type(old), brand_new=(int, 1))
    before = pipeline.fingerprints(run(), MODEL, DATA)
    unset, on = newer.model_validate(old.model_dump()), newer.model_validate(old.model_dump() | {"brand_new": 2})
    assert pipeline.fingerprints(run().model_copy(update={part: unset}), MODEL, DATA) == before
    assert pipeline.fingerprints(run().model_copy(update={part: on}), MODEL, DATA) != before


def test_a_higher_recipe_version_makes_its_stage_and_what_follows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pipeline.fingerprints(run(), MODEL, DATA)
    monkeypatch.setitem(pipeline.RECIPES, "merge", 99)
    assert changed(before, pipeline.fingerprints(run(), MODEL, DATA)) == FROM_MERGE


def test_pickles_are_another_entry_and_read_from_the_store_alone() -> None:
    plain, pickled = (run(model={"uri": "pvc://models/x", "weights": w}).model for w in ("Safetensors", "Pickle"))
    assert pipeline.model_fingerprint(plain) != pipeline.model_fingerprint(pickled)
    assert pipeline.model_path(plain, "/mnt") == "/mnt/claims/models/x"
    assert pipeline.model_path(pickled, "/mnt") is None


def test_mounts() -> None:
    mixed = run(
        dataset={"uri": "configmap://facts/train.jsonl", "test": {"uri": "pvc://tests/rows.jsonl"}},
        publish=[{"uri": "pvc://out/models"}],
        **TASKS,
    )
    assert pipeline.claims(mixed) == ("store", "tests", "benchmarks", "out")
    assert pipeline.config_maps(mixed) == ("facts",)
    template = {"configMapKeyRef": {"name": "chat", "key": "short.jinja"}}
    assert pipeline.config_maps(run(model={"uri": "hf://org/model", "chatTemplate": template})) == ("chat",)


def test_scores_by_vllm_are_kept_apart_and_all_others_stay_where_they_were() -> None:
    assert pipeline.answered("f", "Transformers") == pipeline.answered("f", "LlamaCpp") == "f"
    assert pipeline.answered("f", "VLLM") not in ("f", pipeline.answered("g", "VLLM"))


def test_names_in_a_store_stay_what_they_are(golden: Callable[[Path, str], None]) -> None:
    """Another name for the same thing makes everybody fetch, render and train again: only a raised recipe may do that."""
    asked = run(tasks={"named": [{"name": "arc"}], "files": {"uri": "pvc://benchmarks/arc"}})
    template = {"uri": "hf://org/model", "chatTemplate": {"configMapKeyRef": {"name": "chat", "key": "a"}}}
    assert asked.tasks is not None
    names = {
        "model": pipeline.model_fingerprint(asked.model),
        "pickled model": pipeline.model_fingerprint(run(model={"uri": "hf://org/model", "weights": "Pickle"}).model),
        "templated model": pipeline.templated_fingerprint(run(model=template).model),
        "findings": pipeline.findings_fingerprint(asked.model, "spec.model"),
        "data": pipeline.data_fingerprint(asked, MODEL),
        "tasks": pipeline.tasks_fingerprint(asked.tasks),
        **pipeline.fingerprints(asked, MODEL, DATA.model_copy(update={"tasks_digest": "sha256:t"})),
    }
    text = "".join(f"{what}: {name}\n" for what, name in names.items())
    golden(Path(__file__).parents[3] / "golden" / "store" / "names.yaml", text)
