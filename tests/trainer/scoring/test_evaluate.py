"""The evaluate stage on a tiny model: the right figures, in any batch, and the base's kept for the next job."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.trainer.entries import PAIRS, context, prepare
from transformers import AutoTokenizer

from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.reports import Scores
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.served_rows import AskedRow
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.failures import StepFailed
from finetune_trainer.scoring import by_transformers
from finetune_trainer.scoring.by_transformers import TransformersScorer
from finetune_trainer.stages import evaluate, merge, train

MakeRun = Callable[..., RunConfig]
# Enough to learn eight rows by heart.
TRAINING = {
    "method": "Full",
    "precision": "FP32",
    "maxSteps": 60,
    "globalBatchSize": 8,
    "maxLength": 128,
    "learningRate": 3e-3,
}
GENERATION = {"maxNewTokens": 40}


def evaluated(run: RunConfig, tmp_path: Path) -> dict[str, Scores]:
    return {s.subject: s for s in evaluate.run(context(run, "evaluate", tmp_path)).scores}


def entry_of(run: RunConfig, tmp_path: Path, subject: str) -> Path:
    at = context(run, "evaluate", tmp_path)
    manifest = at.store.read("evaluate", at.inputs.fingerprint(f"evaluate/{subject}"))
    assert manifest is not None
    return at.store.fetch("evaluate", manifest, at.scratch / subject)


def rows_of(run: RunConfig, tmp_path: Path, subject: str) -> list[dict[str, object]]:
    folder = entry_of(run, tmp_path, subject)
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_what_was_learned_is_scored(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(training=TRAINING, generation=GENERATION)
    prepare(run, tmp_path, test=PAIRS)
    train.run(context(run, "train", tmp_path))
    merge.run(context(run, "merge", tmp_path))
    scores = evaluated(run, tmp_path)
    base, merged = scores["base"].values, scores["merged"].values
    assert (base[Metric.EXACT_MATCH], merged[Metric.EXACT_MATCH]) == (0.0, 1.0)
    assert merged[Metric.ROUGE_L] == 1.0
    assert merged[Metric.ENTROPY] < 0.2 < 4 < base[Metric.ENTROPY] < math.log(512) + 0.2
    assert merged[Metric.LOSS] < 0.1 < 4 < base[Metric.LOSS]
    assert base[Metric.PERPLEXITY] == pytest.approx(math.exp(base[Metric.LOSS]))
    answers = rows_of(run, tmp_path, "merged")
    assert [row["answer"] for row in answers] == [completion for _, completion in PAIRS]
    assert all(row["exactMatch"] for row in answers)


def trained_and_merged(make_run: MakeRun, tmp_path: Path, **fields: object) -> RunConfig:
    run = make_run(training=TRAINING | {"maxSteps": 2}, **fields)
    prepare(run, tmp_path, test=PAIRS)
    train.run(context(run, "train", tmp_path))
    merge.run(context(run, "merge", tmp_path))
    return run


def test_batches_change_nothing(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left-padded neighbours and their number must not show in an answer."""
    answers = {}
    for rows in (1, 8):
        monkeypatch.setattr(by_transformers, "BATCH_ROWS", rows)
        store = {"uri": f"pvc://store/{rows}"}
        run = trained_and_merged(make_run, tmp_path, generation=GENERATION, store=store)
        evaluated(run, tmp_path)
        answers[rows] = rows_of(run, tmp_path, "merged")
    assert [r["answer"] for r in answers[1]] == [r["answer"] for r in answers[8]]
    assert [r["lossSum"] for r in answers[1]] == pytest.approx([r["lossSum"] for r in answers[8]], rel=1e-5)


def test_base_is_scored_once_for_all_jobs(make_run: MakeRun, tmp_path: Path) -> None:
    """A second job with the same base, rows and generation finds the scores in the store; samples cap the rows."""
    run = trained_and_merged(make_run, tmp_path, generation=GENERATION | {"samples": 3})
    first = evaluated(run, tmp_path)
    assert {s.samples for s in first.values()} == {3}
    (kept,) = (tmp_path / "mounts/claims/store/job/evaluate").glob(
        context(run, "evaluate", tmp_path).inputs.fingerprint("evaluate/base") + "/manifest.json"
    )
    committed = kept.stat().st_mtime_ns
    other = run.model_copy(update={"training": run.training.model_copy(update={"seed": 7})})
    train.run(context(other, "train", tmp_path))
    merge.run(context(other, "merge", tmp_path))
    second = evaluated(other, tmp_path)
    assert second["base"] == first["base"]
    assert second["merged"] != first["merged"]
    assert kept.stat().st_mtime_ns == committed


def test_labels_are_scored_as_labels(make_run: MakeRun, tmp_path: Path) -> None:
    labels = [(f"The fox is {colour}?", colour) for colour in ("red", "green", "red", "red")]
    run = make_run(training=TRAINING | {"maxSteps": 30}, generation=GENERATION)
    prepare(run, tmp_path, train=labels, test=labels, format="Classification")
    train.run(context(run, "train", tmp_path))
    merge.run(context(run, "merge", tmp_path))
    scores = evaluated(run, tmp_path)
    assert (scores["merged"].values[Metric.ACCURACY], scores["merged"].values[Metric.MACRO_F1]) == (1.0, 1.0)
    assert (scores["base"].values[Metric.ACCURACY], scores["base"].values[Metric.MACRO_F1]) == (0.0, 0.0)


def test_rows_keep_their_own_scores(make_run: MakeRun, tmp_path: Path) -> None:
    run = trained_and_merged(make_run, tmp_path, generation=GENERATION)
    scores = evaluated(run, tmp_path)["merged"].values
    rows = rows_of(run, tmp_path, "merged")
    assert len(rows) == len(PAIRS)
    for metric in (Metric.EXACT_MATCH, Metric.ROUGE_1, Metric.ROUGE_2, Metric.ROUGE_L):
        assert sum(float(str(row[metric])) for row in rows) / len(rows) == pytest.approx(scores[metric])
    tokens = sum(int(str(row["tokens"])) for row in rows)
    for metric, total in ((Metric.LOSS, "lossSum"), (Metric.ENTROPY, "entropySum")):
        assert sum(float(str(row[total])) for row in rows) / tokens == pytest.approx(scores[metric])


def test_what_a_served_model_can_be_asked_again(make_run: MakeRun, tmp_path: Path) -> None:
    """The first rows with the tokenizer's own ids of their prompts; nobody serves the base model."""
    run = trained_and_merged(make_run, tmp_path, generation={"maxNewTokens": 5})
    scores = evaluated(run, tmp_path)
    at = context(run, "evaluate", tmp_path)
    assert (scores["base"].answers, scores["merged"].answers) == (None, at.inputs.fingerprint("evaluate/merged"))
    folder = entry_of(run, tmp_path, "merged")
    asked = [AskedRow.model_validate_json(line) for line in (folder / "asked.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(at.inputs.model()[1])
    saw = rows_of(run, tmp_path, "merged")
    assert [row.row for row in asked] == list(range(1, 9))
    assert [(row.prompt, row.answer) for row in asked] == [(row["prompt"], row["answer"]) for row in saw]
    assert [list(row.prompt_ids) for row in asked] == [tokenizer(r.prompt, add_special_tokens=False).input_ids for r in asked]
    assert all(row.asked_ids == row.prompt_ids and row.max_tokens == 5 and not row.special_tokens for row in asked)
    assert not (entry_of(run, tmp_path, "base") / "asked.jsonl").exists()


def test_rows_that_a_gate_will_ask_are_answered_by_themselves_as_well(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among others a product can be rounded otherwise, and another word wins."""
    seen: list[tuple[int, int]] = []

    def answers(_: TransformersScorer, batch: list[Rendered], new_tokens: int) -> list[str]:
        seen.append((len(batch), new_tokens))
        return ["alone" if len(batch) == 1 else "among others" for _ in batch]

    monkeypatch.setattr(TransformersScorer, "_answers", answers)
    run = trained_and_merged(make_run, tmp_path, generation=GENERATION)
    evaluated(run, tmp_path)
    asked = (entry_of(run, tmp_path, "merged") / "asked.jsonl").read_text().splitlines()
    assert [AskedRow.model_validate_json(line).answer for line in asked] == ["alone"] * len(PAIRS)
    assert {row["answer"] for row in rows_of(run, tmp_path, "merged")} == {"among others"}
    assert seen == [(8, 40), (8, 40), *[(1, 16)] * 8]  # the base, which nobody serves, and the merged model


def test_rows_without_a_prompt_leave_nothing_to_ask(make_run: MakeRun, tmp_path: Path) -> None:
    run = trained_and_merged(make_run, tmp_path, generation=GENERATION)
    for file in (tmp_path / "mounts/claims/store/job/data").glob("*/*/*.jsonl"):
        before, rows = file.stat().st_size, [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**row, "prompt": ""}) + "\n" for row in rows))
        manifest = file.parents[1] / "manifest.json"
        manifest.write_text(manifest.read_text().replace(f'"bytes": {before},', f'"bytes": {file.stat().st_size},'))
    assert evaluated(run, tmp_path)["merged"].answers is None
    assert not (entry_of(run, tmp_path, "merged") / "asked.jsonl").exists()


def test_no_test_rows(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    prepare(run, tmp_path, test=())
    with pytest.raises(StepFailed, match=r"dataset\.test left no rows"):
        evaluated(run, tmp_path)
