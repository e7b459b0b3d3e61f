"""A tiny student learns from a tiny teacher: the loss is the paper's, the student comes nearer, the teacher stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import save_tiny_llama, train_tokenizer
from tests.trainer.entries import PAIRS, context, keeping, prepare, render
from tests.trainer.training.test_train import LORA, committed, preempted, trained
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_trainer.contract import pod
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.export.proof import divergence
from finetune_trainer.model import loading
from finetune_trainer.stages import merge

MakeRun = Callable[..., RunConfig]
URI = "pvc://models/teacher"


@pytest.fixture(autouse=True)
def _grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pod.ENV_GRACE_SECONDS, "120")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, too, but of clear opinions: its logits are spread widely."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("teacher") / "model", train_tokenizer(), seed=1)
    network: Any = AutoModelForCausalLM.from_pretrained(folder)
    network.get_input_embeddings().weight.data *= 6
    network.save_pretrained(folder)
    return folder


def prepared(make_run: MakeRun, tmp_path: Path, teacher: Path, distillation: dict[str, Any], **training: Any) -> RunConfig:
    objective = {"objective": "Distillation", "distillation": {"teacher": {"uri": URI}} | distillation}
    run = make_run(training=LORA | {"maxSteps": 4} | objective | training)
    (tmp_path / "mounts/claims/models/teacher").symlink_to(teacher)
    prepare(run, tmp_path, validation=PAIRS[:2], micro_batch_size=training.get("microBatchSize", 2))
    return run


def predictions(folder: Path, tokenizer: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at each answer token of PAIRS, and the tokens."""
    network, tokens = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(tokenizer)
    logits, answers = [], []
    for pair in PAIRS:
        row = render(tokens, *pair)
        counted = torch.tensor(row.counted[1:])
        with torch.no_grad():
            logits.append(network(input_ids=torch.tensor([row.input_ids])).logits[0, :-1][counted].float())
        answers.append(torch.tensor(row.input_ids[1:])[counted])
    return torch.cat(logits), torch.cat(answers)


@pytest.mark.parametrize(("temperature", "alpha"), [(2, 0.9), (1, 1.0), (4, 0.25)])
def test_the_loss_is_that_of_hinton(
    make_run: MakeRun, tmp_path: Path, tiny_model: Path, teacher: Path, temperature: float, alpha: float
) -> None:
    settings = {"maxSteps": 1, "globalBatchSize": 8, "microBatchSize": 8}
    run = prepared(make_run, tmp_path, teacher, {"temperature": temperature, "alpha": alpha}, **settings)
    (ours, answers), (theirs, _) = predictions(tiny_model, tiny_model), predictions(teacher, tiny_model)
    soft = divergence(theirs / temperature, ours / temperature)
    hard = float(torch.nn.functional.cross_entropy(ours, answers))
    expected = alpha * temperature**2 * soft + (1 - alpha) * hard
    assert trained(run, tmp_path)[1].by_step[1] == pytest.approx(expected, rel=1e-4)


def test_the_student_comes_nearer_and_the_teacher_stays(
    make_run: MakeRun, tmp_path: Path, tiny_model: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(loading, "load_base", keeping(loading.load_base, loaded))
    run = prepared(make_run, tmp_path, teacher, {"alpha": 1}, method="Full", learningRate=2e-3, maxSteps=16)
    trained(run, tmp_path)
    kept = AutoModelForCausalLM.from_pretrained(teacher).state_dict()
    assert all(loaded[1].state_dict()[name].equal(kept[name]) for name in kept)
    merge.run(context(run, "merge", tmp_path))
    folder = context(run, "evaluate", tmp_path).inputs.output("merge")[1]
    wanted = predictions(teacher, tiny_model)[0]
    before, after = (divergence(wanted, predictions(one, tiny_model)[0]) for one in (tiny_model, folder))
    assert after < 0.5 * before


@pytest.mark.slow
@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_a_resumed_distillation_equals_the_unbroken_one(make_run: MakeRun, tmp_path: Path, teacher: Path, method: str) -> None:
    unbroken_run = prepared(make_run, tmp_path, teacher, {}, method=method, lora={"dropout": 0.1})
    unbroken = trained(unbroken_run, tmp_path)[1]
    run = unbroken_run.model_copy(update={"store": StoreConfig(uri="pvc://store/broken")})
    prepare(run, tmp_path, validation=PAIRS[:2])
    before = preempted(run, tmp_path, after=2)
    after = trained(run, tmp_path)[1]
    assert before.by_step | after.by_step == unbroken.by_step
    weights = [(committed(r, tmp_path) / "adapter_model.safetensors").read_bytes() for r in (run, unbroken_run)]
    assert weights[0] == weights[1]
