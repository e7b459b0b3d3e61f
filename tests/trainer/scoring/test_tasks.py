"""spec.evaluation.tasks: scores that equal a hand computation, files that stay as they were, and every refusal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.trainer.entries import PAIRS, context, prepare

from finetune_operator.cli.document import read_document
from finetune_operator.finetunejob.run_config import run_config
from finetune_trainer.contract import pipeline
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import Scores
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.scoring import task_files, task_scores
from finetune_trainer.scoring.tasks import make_entry
from finetune_trainer.stages import evaluate, merge, train

MakeRun = Callable[..., RunConfig]
ROWS: list[dict[str, Any]] = [
    {"question": f"What is {n} and {n}?", "choices": [str(2 * n), "blue", f"number {n}"], "answer": n % 3, "text": str(2 * n)}
    for n in range(10)
]
CHOICE: dict[str, Any] = {
    "task": "sums",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm"},
        {"metric": "brier_score", "higher_is_better": False},
    ],
}
LIKELIHOOD: dict[str, Any] = {
    **{key: CHOICE[key] for key in ("dataset_path", "dataset_kwargs", "test_split", "doc_to_text")},
    "task": "known",
    "output_type": "loglikelihood",
    "doc_to_target": "{{' ' + text}}",
    "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
}
ANSWERED: dict[str, Any] = {
    **{key: CHOICE[key] for key in ("dataset_path", "dataset_kwargs", "test_split", "doc_to_text")},
    "task": "said",
    "output_type": "generate_until",
    "doc_to_target": "text",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match"}],
    "filter_list": [
        {"name": "none", "filter": [{"function": "take_first"}]},
        {"name": "first-word", "filter": [{"function": "regex", "regex_pattern": r"(\S+)"}, {"function": "take_first"}]},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "mounts/claims/benchmarks/tasks"
    found.mkdir(parents=True)
    put(found, CHOICE, LIKELIHOOD, ANSWERED)
    return found


def put(folder: Path, *configs: dict[str, Any], rows: list[dict[str, Any]] = ROWS) -> None:
    for config in configs:
        (folder / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def asking(make_run: MakeRun, *names: str | dict[str, Any], judged: tuple[str, ...] = (), **fields: Any) -> RunConfig:
    named = [{"name": name} if isinstance(name, str) else name for name in names]
    return make_run(tasks={"named": named, "files": {"uri": "pvc://benchmarks/tasks"}, "judged": judged}, **fields)


def made(run: RunConfig, tmp_path: Path) -> None:
    make_entry(context(run, "prepare", tmp_path))


def refusal(run: RunConfig, tmp_path: Path) -> tuple[str, str]:
    with pytest.raises(StepFailed) as stopped:
        made(run, tmp_path)
    assert list((tmp_path / "mounts/claims/store/job").glob("tasks/*/manifest.json")) == []
    return stopped.value.reason, stopped.value.message


# ── Scores ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def scored(make_run: MakeRun, folder: Path, tmp_path: Path, tiny_model: Path) -> Callable[..., dict[str, float]]:
    """Scores of the tiny model on tasks, as evaluate gets them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)

    assert folder.is_dir()

    def run(*names: str | dict[str, Any]) -> dict[str, float]:
        config = asking(make_run, *names)
        made(config, tmp_path)
        named = config.tasks.named if config.tasks else ()
        at = context(config, "evaluate", tmp_path)
        loaded = task_scores.load(named, task_files.kept(at.inputs.tasks()), tmp_path / "cache")
        return task_scores.score(model, tokenizer, loaded, named, lambda _: None).values

    return run


@torch.no_grad()
def likelihoods(tiny_model: Path, asked: str, answers: list[str]) -> list[float]:
    """Log likelihood of each answer after the question, in nats, by a forward pass of its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    before, found = len(tokenizer(asked).input_ids), []
    for answer in answers:
        tokens = torch.tensor([tokenizer(asked + answer).input_ids])
        logits = torch.log_softmax(model(tokens).logits[0, :-1], dim=-1)
        found.append(float(logits.gather(1, tokens[0, 1:, None])[before - 1 :].sum()))
    return found


def test_choices_are_scored_as_by_hand(
    scored: Callable[..., dict[str, float]], tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    right, by_length, distance = [], [], []
    for row in ROWS:
        choices = row["choices"]
        sums = likelihoods(tiny_model, f"{row['question']}\nAnswer:", [f" {choice}" for choice in choices])
        right.append(max(range(3), key=lambda i: sums[i]) == row["answer"])
        by_length.append(max(range(3), key=lambda i: sums[i] / len(choices[i])) == row["answer"])
        shares = torch.softmax(torch.tensor(sums), dim=0)
        distance.append(float(((shares - torch.eye(3)[row["answer"]]) ** 2).sum()))
    found = scored("sums")
    assert found == {
        "sums/acc": sum(right) / 10,
        "sums/acc_norm": sum(by_length) / 10,
        "sums/brier_score": pytest.approx(sum(distance) / 10, abs=1e-4),
    }
    assert 0 < found["sums/brier_score"] < 2
    assert "Running loglikelihood requests" not in capfd.readouterr().err, "bars would drown the pod's progress lines"
    assert found == scored("sums"), "the same model has the same scores again"


def test_likelihoods_are_scored_as_by_hand_and_limit_takes_the_first_rows(
    scored: Callable[..., dict[str, float]], tiny_model: Path
) -> None:
    sums = [likelihoods(tiny_model, f"{row['question']}\nAnswer:", [f" {row['text']}"])[0] for row in ROWS]
    expected = {n: math.exp(-sum(sums[:n]) / n) for n in (4, 10)}
    assert scored("known")["known/perplexity"] == pytest.approx(expected[10], rel=1e-3)
    assert scored({"name": "known", "limit": 4})["known/perplexity"] == pytest.approx(expected[4], rel=1e-3)
    assert expected[4] != pytest.approx(expected[10], rel=1e-2)
    solved = scored({"name": "known", "numFewshot": 2})["known/perplexity"]
    assert solved != pytest.approx(expected[10], rel=1e-2), "solved rows come before the question"


def test_answers_are_greedy_and_read_by_filters(
    scored: Callable[..., dict[str, float]], folder: Path, tiny_model: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    rows = []
    for number, row in enumerate(ROWS):
        asked = tokenizer(f"{row['question']}\nAnswer:", return_tensors="pt")
        out = model.generate(**asked, do_sample=False, max_new_tokens=8)[0, asked.input_ids.shape[1] :]
        said = tokenizer.decode(out, skip_special_tokens=True).split("\n")[0]
        rows.append(row | {"text": said if number < 7 else "something else"})
    put(folder, rows=rows)
    found = scored("said")
    assert found["said/exact_match"] == 0.7
    assert set(found) == {"said/exact_match", "said/exact_match,first-word"}


def test_a_templates_reach_ends_at_its_row(make_run: MakeRun, folder: Path, tmp_path: Path) -> None:
    """lm-eval's own environment would hand out every class of Python."""
    put(folder, CHOICE | {"doc_to_text": "{{ question.__class__.__mro__[1].__subclasses__() }}"})
    reason, message = refusal(asking(make_run, "sums"), tmp_path)
    assert reason == "TaskUnusable"
    assert "SecurityError: access to attribute '__class__' of 'str' object is unsafe" in message


def test_the_stage_scores_base_and_merged_and_says_which_way_is_better(make_run: MakeRun, folder: Path, tmp_path: Path) -> None:
    training = {"method": "Full", "precision": "FP32", "maxSteps": 2, "globalBatchSize": 8, "maxLength": 128}
    run = asking(make_run, "sums", {"name": "known", "limit": 3}, training=training)
    prepare(run, tmp_path, test=PAIRS)
    made(run, tmp_path)
    (folder / "rows.jsonl").unlink()  # what prepare kept is what counts
    train.run(context(run, "train", tmp_path))
    merge.run(context(run, "merge", tmp_path))
    at = context(run, "evaluate", tmp_path)
    base, merged = evaluate.run(at).scores
    for scores in (base, merged):
        names = {name for name in scores.values if "/" in name}
        assert names == {"sums/acc", "sums/acc_norm", "sums/brier_score", "known/perplexity", "known/acc"}
        assert scores.lower_is_better == ("sums/brier_score", "known/perplexity")
        assert scores.values["loss"] > 0, "beside the others"
    assert merged.values["sums/brier_score"] != base.values["sums/brier_score"]
    assert Scores.model_validate_json(base.model_dump_json(by_alias=True)) == base
    manifest = at.store.read("evaluate", at.inputs.fingerprint("evaluate/merged"))
    assert manifest is not None
    told = json.loads((at.store.fetch("evaluate", manifest, tmp_path / "out") / "tasks.json").read_text())
    assert told["known"]["n-samples"] == {"original": 10, "effective": 3}


# ── What is kept ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_the_named_tasks_use_is_kept_and_counts(make_run: MakeRun, folder: Path, tmp_path: Path) -> None:
    (folder / "utils.py").write_text("raise SystemExit('run')")
    (folder / "other.jsonl").write_text("{}")
    run = asking(make_run, "sums")
    made(run, tmp_path)
    at = context(run, "evaluate", tmp_path)
    assert sorted(path.name for path in at.inputs.tasks().iterdir() if path.name != "files.json") == [
        "rows.jsonl",
        "tasks.json",
    ]
    digest = at.inputs.tasks_digest()
    (folder / "other.jsonl").write_text("{} ")
    made(run, tmp_path)
    assert at.inputs.tasks_digest() == digest
    assert str(digest).startswith("sha256:")


def test_files_that_changed_are_refused(make_run: MakeRun, folder: Path, tmp_path: Path) -> None:
    run = asking(make_run, "sums")
    made(run, tmp_path)
    put(folder, rows=ROWS[:9])
    with pytest.raises(
        StepFailed, match=r"TasksChanged: .*pvc://benchmarks/tasks are not those that this store's scores were made of"
    ):
        made(run, tmp_path)
    put(folder)
    made(run, tmp_path)


def test_includes_are_merged_as_lm_eval_does(make_run: MakeRun, folder: Path, tmp_path: Path) -> None:
    (folder / "below").mkdir()
    shared = {key: value for key, value in CHOICE.items() if key != "task"}
    (folder / "below" / "_shared").write_text(yaml.safe_dump(shared))
    (folder / "below" / "rows.jsonl").write_text((folder / "rows.jsonl").read_text())
    (folder / "more.yaml").write_text("include: below/_shared\ntask: more\ndescription: Add.\n")
    run = asking(make_run, "more")
    made(run, tmp_path)
    config = task_files.kept(context(run, "evaluate", tmp_path).inputs.tasks())["more"]
    assert (config["description"], config["output_type"]) == ("Add.", "multiple_choice")
    assert config["dataset_kwargs"]["data_files"]["test"].endswith("/below/rows.jsonl")


def test_choices_keep_the_order_that_answers_count_by(make_run: MakeRun, folder: Path, tmp_path: Path) -> None:
    put(folder, {key: value for key, value in CHOICE.items() if key != "doc_to_choice"})
    with (folder / "sums.yaml").open("a") as file:
        file.write("doc_to_choice: {yes: Right, no: Wrong, maybe: Who knows}\n")
    run = asking(make_run, "sums")
    made(run, tmp_path)
    config = task_files.kept(context(run, "evaluate", tmp_path).inputs.tasks())["sums"]
    assert list(config["doc_to_choice"].values()) == ["Right", "Wrong", "Who knows"]


# ── What is refused ───────────────────────────────────────────────────────────────────────────────────────────────────

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"dataset_path": "allenai/ai2_arc"}, "TaskFileMissing", "takes its rows from allenai/ai2_arc, and no hub is asked"),
    ({"dataset_kwargs": {"data_files": "lost.jsonl"}}, "TaskFileMissing", "takes its rows from lost.jsonl, which is not at"),
    ({"dataset_kwargs": {"data_files": "/etc/passwd"}}, "TaskRefused", "only files beside it are read"),
    ({"dataset_kwargs": {"data_files": ["../rows.jsonl"]}}, "TaskRefused", "only files beside it are read"),
    ({"dataset_kwargs": {"data_files": "hf://datasets/a/b.jsonl"}}, "TaskRefused", "only files beside it are read"),
    ({"dataset_kwargs": {"data_files": "rows.jsonl", "streaming": True}}, "TaskRefused", "dataset_kwargs.streaming"),
    ({"include": "../x.yaml"}, "TaskRefused", "sums.yaml includes ../x.yaml; only files beside it are read"),
    ({"include": "lost.yaml"}, "TaskFileMissing", "sums.yaml includes lost.yaml, which is not at pvc://benchmarks/tasks"),
    ({"include": "sums.yaml"}, "TaskRefused", "sums.yaml includes itself"),
    ({"include": "utils.py"}, "TaskRefused", "needs Python (utils.py), which is not run here"),
    ({"class": "some.Class"}, "TaskRefused", "has class, which runs code or is no key that is known here"),
    ({"unsafe_code": True}, "TaskRefused", "has unsafe_code"),
    ({"use_prompt": "promptsource:x"}, "TaskRefused", "has use_prompt"),
    ({"metric_list": [{"metric": "bertscore", "hf_evaluate": True}]}, "TaskRefused", "of the library evaluate"),
    ({"metric_list": [{"metric": "accuracy"}]}, "TaskRefused", "lm-eval has no metric accuracy, which sums names; it has acc"),
    ({"metric_list": [{"metric": "acc", "aggregation": "mode"}]}, "TaskRefused", "lm-eval has no aggregation mode"),
    ({"generation_kwargs": {"do_sample": True}}, "TaskRefused", "answers are greedy, so that scores can be repeated"),
    ({"generation_kwargs": {"custom_generate": "x"}}, "TaskRefused", "has generation_kwargs.custom_generate"),
    ({"filter_list": [{"name": "f", "filter": [{"function": "custom"}]}]}, "TaskRefused", "has the filter custom"),
    ({"filter_list": [{"name": "f g", "filter": [{"function": "take_first"}]}]}, "TaskRefused", "is no name for a score"),
    ({"doc_to_text": "{{question.lost.more}}"}, "TaskUnusable", "UndefinedError: 'str object' has no attribute 'lost'"),
    ({"test_split": "validation"}, "TaskUnusable", "lm-eval can't ask the questions of sums: KeyError"),
]


@pytest.mark.parametrize(("fields", "reason", "text"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_would_run_code_or_ask_a_hub_is_refused(
    make_run: MakeRun, folder: Path, tmp_path: Path, fields: dict[str, Any], reason: str, text: str
) -> None:
    put(folder, CHOICE | fields)
    found, message = refusal(asking(make_run, "sums"), tmp_path)
    assert found == reason
    assert message.startswith("spec.evaluation.task")
    assert text in message


@pytest.mark.parametrize("value", ["!function utils.run", "[!function utils.run]", "!!python/object/apply:os.system [id]"])
def test_functions_are_refused_and_never_run(make_run: MakeRun, folder: Path, tmp_path: Path, value: str) -> None:
    (folder / "utils.py").write_text("raise SystemExit('run')")
    (folder / "sums.yaml").write_text(yaml.safe_dump(CHOICE) + f"description: {value}\n")
    reason, message = refusal(asking(make_run, "sums"), tmp_path)
    assert reason == "TaskRefused"
    assert "sums.yaml (task sums) needs Python (!function)" in message or "sums.yaml is no YAML" in message


@pytest.mark.usefixtures("folder")
def test_a_task_that_is_not_there_is_named_with_those_that_are(make_run: MakeRun, tmp_path: Path) -> None:
    reason, message = refusal(asking(make_run, "hellaswag"), tmp_path)
    assert reason == "TaskNotFound"
    assert "no YAML file at pvc://benchmarks/tasks has the task hellaswag (it has known, said, sums); put its file" in message


@pytest.mark.usefixtures("folder")
def test_few_rows_for_many_shots_are_told_before_training(make_run: MakeRun, tmp_path: Path) -> None:
    reason, message = refusal(asking(make_run, {"name": "sums", "numFewshot": 50}), tmp_path)
    assert reason == "TaskUnusable"
    assert "lm-eval can't ask the questions of sums" in message


@pytest.mark.usefixtures("folder")
def test_a_gates_score_must_be_among_the_tasks(make_run: MakeRun, tmp_path: Path) -> None:
    made(asking(make_run, "sums", judged=("sums/acc",)), tmp_path)
    with pytest.raises(StepFailed) as stopped:
        made(asking(make_run, "sums", judged=("sums/accc",)), tmp_path)
    assert stopped.value.reason == "TaskScoreUnknown"
    assert "there is no sums/accc; sums has sums/acc, sums/acc_norm, sums/brier_score" in stopped.value.message


@pytest.mark.parametrize(("length", "tasks", "each"), [(60, 3, 7), (1, 19, 3)])
def test_more_scores_than_a_report_or_a_status_holds(
    make_run: MakeRun, folder: Path, tmp_path: Path, length: int, tasks: int, each: int
) -> None:
    metrics = [{"metric": name} for name in ("acc", "f1", "mcc", "acc_norm", "acc_bytes", "brier_score", "exact_match")[:each]]
    names = [f"{'x' * length}{n}" for n in range(tasks)]
    put(folder, *(CHOICE | {"task": name, "metric_list": metrics} for name in names))
    reason, message = refusal(asking(make_run, *names), tmp_path)
    assert reason == "TooManyScores"
    assert f"{each * tasks} scores of 2 models are more than a pod can report; name fewer tasks" in message
    made(asking(make_run, *names[:2]), tmp_path)


@pytest.mark.usefixtures("folder")
def test_an_image_without_lm_eval_says_so(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_scores, "find_spec", lambda _: None)
    with pytest.raises(
        StepFailed, match=r"need the package lm-eval, which this image lacks: set spec\.stages\.prepare\.image"
    ) as no:
        made(asking(make_run, "sums"), tmp_path)
    assert no.value.exit_code == ExitCode.BAD_CONFIG


def test_the_example_s_task_is_taken(make_run: MakeRun, tmp_path: Path) -> None:
    document = read_document(Path(__file__).parents[3] / "examples/benchmark-task.yaml")
    place = tmp_path / "mounts/configmaps/everyday"
    place.mkdir(parents=True)
    for key, content in document.config_maps["everyday"].items():
        (place / key).write_bytes(content)
    asked = run_config(document.job).tasks
    assert asked is not None
    assert asked.judged == ("everyday/acc",)
    made(make_run(tasks=asked.model_dump()), tmp_path)


def test_a_folder_that_is_not_there(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(
        StepFailed, match=r"TaskFilesNotFound: spec\.evaluation\.taskFiles\.uri: pvc://benchmarks/tasks: nothing of that"
    ):
        made(asking(make_run, "sums"), tmp_path)


@pytest.mark.usefixtures("folder")
def test_the_files_digest_and_the_asked_limits_are_in_the_fingerprint(make_run: MakeRun, tmp_path: Path) -> None:
    found = {}
    for name, names in (("all", ("sums",)), ("three", ({"name": "sums", "limit": 3},))):
        run = asking(make_run, *names)
        prepare(run, tmp_path)
        made(run, tmp_path)
        found[name] = context(run, "evaluate", tmp_path).inputs.fingerprints()
    assert found["all"]["evaluate/base"] != found["three"]["evaluate/base"]
    assert found["all"]["merge"] == found["three"]["merge"]
    three, all_of_them = run.tasks, asking(make_run, "sums").tasks
    assert three is not None
    assert all_of_them is not None
    assert pipeline.tasks_fingerprint(three) == pipeline.tasks_fingerprint(all_of_them)
