"""Answers by vLLM: as transformers gives them, told with the scores, and never mixed with another engine's."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.trainer.entries import PAIRS, context, prepare
from tests.trainer.pods import in_a_pod, python_of

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.pipeline import answered
from finetune_trainer.contract.reports import Manifest
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.failures import StepFailed
from finetune_trainer.model.compute import Compute
from finetune_trainer.scoring import by_vllm
from finetune_trainer.scoring.by_vllm import VllmScorer
from finetune_trainer.stages import evaluate, merge, train

MakeRun = Callable[..., RunConfig]
TRAINING = {
    "method": "Full",
    "precision": "FP32",
    "maxSteps": 60,
    "globalBatchSize": 8,
    "maxLength": 128,
    "learningRate": 3e-3,
}
ROW = Rendered((1, 2), (0, 1), "asked", "said", 1)
SECONDS = 900  # two engines, each of which imports vLLM three times; on a busy machine that takes its time


@pytest.fixture(scope="session")
def evaluator() -> Path:
    """Python with what the evaluator's image for CPUs holds."""
    return python_of("evaluator", "serve-vllm", "evaluator")


def asking(run: RunConfig, engine: str) -> RunConfig:
    return RunConfig.model_validate(run.model_dump(mode="json") | {"generation": {"engine": engine, "maxNewTokens": 24}})


def scored(run: RunConfig, tmp_path: Path, subject: str, engine: str) -> tuple[Manifest, list[dict[str, object]]]:
    at = context(run, "evaluate", tmp_path)
    manifest = at.store.read("evaluate", answered(at.inputs.fingerprint(f"evaluate/{subject}"), engine))
    assert manifest is not None
    folder = at.store.fetch("evaluate", manifest, at.scratch / subject)
    return manifest, [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_vllm_answers_as_transformers_does(make_run: MakeRun, tmp_path: Path, evaluator: Path) -> None:
    run = asking(make_run(training=TRAINING), "VLLM")
    prepare(run, tmp_path, test=PAIRS)
    train.run(context(run, "train", tmp_path))
    merge.run(context(run, "merge", tmp_path))
    other = asking(run, "Transformers")
    evaluate.run(context(other, "evaluate", tmp_path))
    in_a_pod(evaluator, run, ("evaluate",), tmp_path, seconds=SECONDS)
    at = context(run, "evaluate", tmp_path)
    committed = at.store.read("evaluate", at.inputs.fingerprint("evaluate"))
    assert committed is not None
    for told, subject in zip(committed.result.scores, ("base", "merged"), strict=True):
        manifest, rows = scored(run, tmp_path, subject, "VLLM")
        assert (told.subject, told.engine, manifest.inputs["engine"]) == (subject, "VLLM", "VLLM")
        assert committed.inputs[subject] == manifest.fingerprint
        assert [check.name for check in manifest.checks] == ["tokenIds"]
        assert manifest.versions["vllm"].endswith("+cpu")
        reference, expected = scored(other, tmp_path, subject, "Transformers")
        assert reference.result.scores[0].engine == "Transformers"
        assert [row["answer"] for row in rows] == [row["answer"] for row in expected]
        assert [row["lossSum"] for row in rows] == pytest.approx([row["lossSum"] for row in expected], rel=1e-4)
        assert told.values == pytest.approx(reference.result.scores[0].values, rel=1e-4)
    assert committed.result.scores[1].values[Metric.EXACT_MATCH] == 1.0


@pytest.mark.slow
def test_a_tokenizer_that_vllm_reads_otherwise_is_refused(make_run: MakeRun, tmp_path: Path, evaluator: Path) -> None:
    run = asking(make_run(training=TRAINING | {"maxSteps": 2}), "VLLM")
    prepare(run, tmp_path, test=PAIRS)
    train.run(context(run, "train", tmp_path))
    merge.run(context(run, "merge", tmp_path))
    at = context(run, "evaluate", tmp_path)
    base = at.inputs.fingerprint("evaluate/base")
    prepared = evaluate.run(context(asking(run, "Transformers"), "evaluate", tmp_path))
    empty = at.scratch / "base"
    empty.mkdir()
    (empty / "rows.jsonl").write_text("{}")
    scores = prepared.model_copy(update={"fingerprint": answered(base, "VLLM"), "scores": prepared.scores[:1]})
    at.keep("evaluate", empty, scores, {})
    _, merged = at.inputs.output("merge")
    file = merged / "tokenizer.json"
    exchanged = {'"e": ': '"o": ', '"o": ': '"e": '}  # the file keeps its length: the store finds nothing wrong
    text = re.sub("|".join(exchanged), lambda found: exchanged[found[0]], file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    in_a_pod(evaluator, run, ("evaluate",), tmp_path, ends=ExitCode.VERIFICATION_FAILED, seconds=SECONDS)
    assert "vLLM's tokenizer gives other ids than the model's" in (tmp_path / "termination").read_text()


class Engine:
    """vLLM as far as a scorer speaks to it; tells by the answer how many rows were in the step."""

    def __init__(self) -> None:
        self.llm_engine = self.engine_core = self
        self.asked: list[tuple[int, int]] = []
        self.salts: list[str | None] = []
        self.ended = False

    def get_tokenizer(self) -> Any:
        return None

    def generate(self, prompts: list[dict[str, Any]], greedy: int, use_tqdm: bool) -> list[Any]:
        assert not self.ended
        assert not use_tqdm
        self.salts += [prompt.get("cache_salt") for prompt in prompts]
        self.asked.append((len(prompts), greedy))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[len(prompts)])]) for _ in prompts]

    def shutdown(self) -> None:
        self.ended = True


def test_rows_that_a_gate_will_ask_are_asked_by_themselves_of_the_same_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    tokenizer: Any = SimpleNamespace(decode=lambda ids, **_: f"{ids[0]} in the step")
    scorer = VllmScorer(Path(), tokenizer, (0,), 40, Compute("cpu", torch.float32))
    monkeypatch.setattr(scorer, "_engine", lambda **_: engine)
    monkeypatch.setattr(scorer, "_greedy", lambda new_tokens: new_tokens)
    monkeypatch.setattr(by_vllm, "check_tokens", lambda *_: ())
    assert scorer._answers([ROW] * 3, alone=2) == ["3 in the step"] * 3
    assert scorer.alone == ("1 in the step",) * 2
    assert sorted(engine.asked) == [(1, 16), (1, 16), (3, 40)]
    first, second, *together = engine.salts
    assert first != second, "the second row finds the beginning that it shares with the first in the cache"
    assert first is not None
    assert together == [None] * 3
    assert engine.ended


@pytest.mark.parametrize(
    ("device", "alone", "compiled"), [("cuda", 8, True), ("cuda", 0, False), ("cpu", 8, False)], ids=["served", "base", "cpu"]
)
def test_what_a_gate_will_ask_is_answered_by_an_engine_compiled_as_the_server_s(
    monkeypatch: pytest.MonkeyPatch, device: str, alone: int, compiled: bool
) -> None:
    """On CPUs a server compiles nothing, and of the base nobody asks again."""
    engine, told = Engine(), list[Any]()

    def load(*_: Any, **options: Any) -> Engine:
        told.append(options["enforce_eager"])
        return engine

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=load))
    monkeypatch.setattr("finetune_trainer.environment.offer", lambda _: None)
    monkeypatch.setattr(by_vllm, "_utilization", lambda _: 0.5)
    monkeypatch.setattr(by_vllm, "check_tokens", lambda *_: ())
    tokenizer: Any = SimpleNamespace(decode=lambda *_, **__: "")
    scorer = VllmScorer(Path(), tokenizer, (0,), 40, Compute(device, torch.bfloat16))
    monkeypatch.setattr(scorer, "_greedy", lambda new_tokens: new_tokens)
    scorer._answers([ROW] * 9, alone)
    assert told == [not compiled]


def test_vllm_that_is_asked_for_and_missing_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = asking(make_run(), "VLLM")
    prepare(run, tmp_path)
    with pytest.raises(StepFailed, match=r"spec\.evaluation\.engine VLLM needs .* spec\.stages\.evaluate\.image") as failed:
        evaluate.run(context(run, "evaluate", tmp_path))
    assert (failed.value.exit_code, failed.value.reason) == (ExitCode.BAD_CONFIG, "ToolMissing")


@pytest.mark.parametrize(
    ("engine", "gpus", "there", "chosen"),
    [
        ("Auto", 1, True, "VLLM"),
        ("Auto", 0, True, "Transformers"),
        ("Auto", 1, False, "Transformers"),
        ("VLLM", 0, True, "VLLM"),
        ("Transformers", 1, True, "Transformers"),
    ],
)
def test_auto_takes_vllm_where_it_is_and_has_a_gpu(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, gpus: int, there: bool, chosen: str
) -> None:
    if there:
        (tmp_path / "packages/vllm").mkdir(parents=True)
        (tmp_path / "packages/vllm/__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path / "packages")
    at = context(asking(make_run(devices={"gpus": gpus}), engine), "evaluate", tmp_path)
    assert evaluate.engine_for(at, [ROW]) == chosen
    assert evaluate.engine_for(at, [Rendered((1,), (1,), "", "plain", 0)]) == "Transformers"
