"""What leaves the pipeline is what was trained: broken adapters, merges and files are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.trainer.entries import context, prepare

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pipeline import FIRST_ROW_LOSS
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.export import gguf, proof
from finetune_trainer.failures import StepFailed
from finetune_trainer.stages import merge, train

MakeRun = Callable[..., RunConfig]
TRAINING = {"method": "QLoRA", "precision": "FP32", "maxSteps": 4, "maxLength": 128, "learningRate": 1e-2}
Tensors = dict[str, torch.Tensor]


def dead(tensors: Tensors) -> Tensors:
    return {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in tensors.items()}


def compiled(tensors: Tensors) -> Tensors:
    return {n.replace("base_model.", "base_model._orig_mod."): t for n, t in tensors.items()}


def cut(tensors: Tensors) -> Tensors:
    return dict(sorted(tensors.items())[1:])


def other(tensors: Tensors) -> Tensors:
    return {n: -t if "lora_B" in n else t for n, t in tensors.items()}


@pytest.fixture
def trained(make_run: MakeRun, tmp_path: Path) -> RunConfig:
    run = make_run(training=TRAINING)
    prepare(run, tmp_path)
    train.run(context(run, "train", tmp_path))
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dead, "the adapter is dead: all of its B matrices are zero"),
        (compiled, "named as torch.compile names them"),
        (cut, "tensors where the model takes 28"),
        (other, "read back, the trained weights have loss"),
    ],
)
def test_pain_14_a_dead_adapter_is_refused(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensors], Tensors], sentence: str
) -> None:
    save = train._save

    def damage(*arguments: Any) -> Path:
        folder = save(*arguments)
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        file.unlink()
        save_file(change(tensors), file, metadata={"format": "pt"})
        return folder

    monkeypatch.setattr(train, "_save", damage)
    run = make_run(training=TRAINING | {"maxSteps": 2})
    prepare(run, tmp_path)
    train.run(context(run, "train", tmp_path))
    with pytest.raises(StepFailed, match=sentence) as failed:
        merge.run(context(run, "merge", tmp_path))
    assert failed.value.exit_code is ExitCode.VERIFICATION_FAILED
    assert context(run, "merge", tmp_path).committed() is None


@pytest.mark.slow
def test_pain_12_a_merge_that_loses_the_adapter_is_refused(
    trained: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Does what merging in 4 bits does: the sum is rounded back to the base's own steps."""
    monkeypatch.setattr(merge, "_with_adapter", lambda _, weight: weight)
    with pytest.raises(StepFailed, match="merged model answers unlike the trained one"):
        merge.run(context(trained, "merge", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["QLoRA", "Full"])
def test_each_proof_of_a_merge_is_in_its_manifest(make_run: MakeRun, tmp_path: Path, method: str) -> None:
    run = make_run(training=TRAINING | {"method": method, "learningRate": 1e-3})
    prepare(run, tmp_path)
    train.run(context(run, "train", tmp_path))
    merge.run(context(run, "merge", tmp_path))
    at = context(run, "evaluate", tmp_path)
    manifest, _ = at.inputs.output("merge")
    assert float(at.inputs.output("train")[0].inputs[FIRST_ROW_LOSS]) > 0
    found = {check.name: check for check in manifest.checks}
    adapter = ["adapterTensors", "largestB", "reloadedLoss", "divergence", "topToken", "perplexityRatio", "stops"]
    assert list(found) == (["reloadedLoss", "stops"] if method == "Full" else adapter)
    assert found["reloadedLoss"].value <= found["reloadedLoss"].limit
    if method == "QLoRA":
        assert found["reloadedLoss"].value < 1e-3
        assert found["largestB"].value > 0


def test_pain_02_a_model_that_never_stops_any_more_is_refused() -> None:
    with pytest.raises(StepFailed, match="never stops: none of 3 answers to training prompts ended, of the base model's 2 did"):
        proof.check_stops(3, 0, lambda: 0, lambda: 2)
    assert proof.check_stops(3, 0, lambda: 0, lambda: 0)[0].value == 0  # nor did the base: scores show what it is worth
    unasked = partial(pytest.fail, "nobody is asked")
    assert proof.check_stops(3, 0, lambda: 1, unasked)[0].value == 0  # it goes round in circles, and knows how a row ends
    assert proof.check_stops(3, 1, unasked, unasked)[0].value == pytest.approx(1 / 3)
    assert proof.check_stops(0, 0, lambda: 0, lambda: 2) == ()  # plain text asks nothing


def test_pain_02_the_end_of_a_row_is_expected_where_it_was_learned(tiny_model: Path) -> None:
    from finetune_trainer.contract.training import Method
    from finetune_trainer.model.compute import Compute
    from finetune_trainer.model.loading import load_base

    network = load_base(tiny_model, Method.LORA, Compute("cpu", torch.float32))
    told = (5, 6, 7, 8)
    end = int(network(torch.tensor([told])).logits[0, -1].argmax())
    row = proof.FixedRow((*told, end), (False, True, True, True, True), "", True)
    assert proof.expecting(network, [row], (end,)) == 1
    unlike = next(token for token in range(4, 400) if token != end)
    rows = {
        "cut": replace(row, whole=False),
        "its end was masked": replace(row, counted=(False, True, True, True, False)),
        "it ends with another token": replace(row, tokens=(*told, unlike)),
    }
    assert {why: proof.expecting(network, [other], (end,)) for why, other in rows.items()} == dict.fromkeys(rows, 0)
    assert proof.expecting(network, [replace(row, tokens=(*told, unlike))], (unlike,)) == 0  # the model expects another one


def test_pain_02_answers_are_asked_for_and_end_by_themselves(make_run: MakeRun, tmp_path: Path, tiny_model: Path) -> None:
    from finetune_trainer.contract.training import Method
    from finetune_trainer.model.compute import Compute
    from finetune_trainer.model.loading import load_base

    run = make_run()
    prepare(run, tmp_path)
    asked = proof.questions(context(run, "train", tmp_path).inputs.data()[1])
    assert len(asked) == proof.QUESTIONS
    assert [q.limit for q in asked] == sorted(q.limit for q in asked)
    network = load_base(tiny_model, Method.LORA, Compute("cpu", torch.float32))
    first = {int(network(torch.tensor([q.tokens])).logits[0, -1].argmax()) for q in asked}
    assert proof.stopping(network, asked, tuple(first)) == len(asked)
    unsaid = next(t for t in range(4, 400) if t not in first)
    with torch.no_grad():
        network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.clone())
        network.lm_head.weight[unsaid] = 0
    assert proof.stopping(network, asked, (unsaid,)) == 0


def test_top_token_counts_only_what_the_reference_finds_unlikely() -> None:
    reference = torch.tensor([[5.0, 4.9, 0.0], [5.0, 0.0, 0.0]])
    assert proof._top_token(reference, torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])) == 0.5


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (proof.Likeness(float("nan"), 1.0, 1.0), "divergence"),
        (proof.Likeness(0.0, 0.1, 1.0), "topToken"),
        (proof.Likeness(0.0, 1.0, 9.0), "perplexityRatio"),
    ],
)
def test_pain_17_garbage_is_refused_whatever_shows_it(found: proof.Likeness, name: str) -> None:
    with pytest.raises(StepFailed, match=f"the file: {name}"):
        proof.check_likeness("the file", found, gguf.LIMITS["Q4_K_M"])


class Words:
    """Both tokenizers in one: a token for each word."""

    chat_template = "{{ messages }}"

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def read(self, text: str) -> list[int]:
        return [len(word) + self.offset for word in text.split()]

    def __call__(self, text: str, **_: Any) -> Any:
        return type("Encoded", (), {"input_ids": self.read(text)})


def test_pain_17_a_file_that_reads_other_tokens_is_refused() -> None:
    row = proof.FixedRow((1, 2), (False, True), "How are you", True)
    assert proof.check_tokens([row], Words(), "the file", Words().read)
    with pytest.raises(StepFailed, match="gives other ids than the model's for 1 of 1 rows"):
        proof.check_tokens([row], Words(), "the file", Words(offset=1).read)


def test_pain_02_a_file_with_another_end_token_is_refused() -> None:
    assert proof.check_end_token((2, 7), "7")
    for carried in ("3", None):
        with pytest.raises(StepFailed, match=f"the file ends answers with token {carried}, the model with 2 or 7"):
            proof.check_end_token((2, 7), carried)


def test_pain_01_an_artifact_with_another_chat_template_is_refused() -> None:
    assert proof.check_template(Words(), "{{ messages }}\n")
    for carried in (None, "{{ other }}"):
        with pytest.raises(StepFailed, match="carries another chat template"):
            proof.check_template(Words(), carried)
