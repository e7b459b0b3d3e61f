"""A step asks the device for numbers once: when the optimizer has its work, and before anything of it is told or saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.trainer.conftest import train_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig

from finetune_trainer.failures import StepFailed
from finetune_trainer.training.supervised import SupervisedLoop


class Read(TorchDispatchMode):
    """Whether a number was asked of the device."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.numbers += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Watched(SupervisedLoop):
    """Notes what happened in which order, and what was read before the optimizer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.order: list[str] = []
        self.read = 0
        self.spoil_at: int | None = None
        super().__init__(*args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.state.global_step + 1 == self.spoil_at:
            model.lm_head.weight.grad.fill_(float("nan"))
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        with Read() as read:  # type: ignore[no-untyped-call]
            norm = super()._get_grad_norm(model, grad_norm)
        self.read += read.numbers
        self.order.append("norm")
        return norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.order.append("told")
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.order.append("saved")


class Stepped(TrainerCallback):
    """Notes that the optimizer has its work."""

    def __init__(self, order: list[str]) -> None:
        self._order = order

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._order.append("optimizer")


def loop(folder: Path) -> Watched:
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 101,
    }
    torch.manual_seed(0)
    rows = [list(range(4, 12))] * 16
    made = Watched(
        model=LlamaForCausalLM(LlamaConfig(**shape)),
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            logging_steps=1,
            save_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        processing_class=train_tokenizer(),
    )
    made.add_callback(Stepped(made.order))
    return made


def test_the_optimizer_has_its_work_before_a_number_is_read(tmp_path: Path) -> None:
    watched = loop(tmp_path)
    watched.train()
    assert watched.order[:8] == ["norm", "optimizer", "told", "saved"] * 2
    assert watched.read == 0
    told = [entry for entry in watched.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in told] == [1, 2, 3]
    assert all(entry["loss"] > 0 and entry["grad_norm"] > 0 for entry in told)
    assert watched.state.log_history[-1]["train_loss"] == pytest.approx(sum(e["loss"] for e in told) / 3)


def test_nothing_of_a_step_that_was_spoiled_is_told_or_saved(tmp_path: Path) -> None:
    watched = loop(tmp_path)
    watched.spoil_at = 2
    with pytest.raises(StepFailed, match="gradient norm nan at step 2"):
        watched.train()
    assert watched.order == ["norm", "optimizer", "told", "saved", "norm", "optimizer"]
