"""Packed rows learn what padded ones do: rows that share a line of tokens never attend to each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.trainer.conftest import train_tokenizer
from tests.trainer.entries import PAIRS, prepare, render
from tests.trainer.training.test_train import LORA, MakeRun, trained
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from trl import SFTConfig

from finetune_trainer.data.tokenized import labels
from finetune_trainer.training.supervised import SupervisedLoop

LENGTH = 96  # of a packed row: two or three of PAIRS
SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def dataset(everything: bool = False) -> Dataset:
    """PAIRS as training reads them; `everything` learns the prompts, too."""
    rows = [render(train_tokenizer(), *pair) for pair in PAIRS]
    learned = [row.input_ids if everything else labels(row) for row in rows]
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": learned})


def one_step(network: Any, rows: Dataset, folder: Path, **settings: Any) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss and gradients of one optimizer step over all rows, by the loop's own code; and how many forward passes it took."""
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": len(rows),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
    }
    loop = SupervisedLoop(
        model=network, args=SFTConfig(**arguments | settings), train_dataset=rows, processing_class=train_tokenizer()
    )
    network.zero_grad()
    batches = list(loop.get_train_dataloader())
    batches, count = loop.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
    loss = sum(float(loop.training_step(network, batch, count)) for batch in batches)
    return loss, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}, len(batches)


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def with_a_sliding_window() -> Any:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=12))


@pytest.mark.parametrize("make", [llama, with_a_sliding_window])
@pytest.mark.parametrize("everything", [False, True], ids=["completions", "everything"])
def test_pain_08_packed_rows_have_the_one_step_of_padded_ones(make: Any, everything: bool, tmp_path: Path) -> None:
    network, rows = make(), dataset(everything)
    loss, gradients, _ = one_step(network, rows, tmp_path)
    packed_loss, packed, lines = one_step(
        network, rows, tmp_path, packing=True, max_length=LENGTH, per_device_train_batch_size=1
    )
    assert 1 < lines < len(rows) / 2
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == packed.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        scale = float(gradient.abs().max())
        torch.testing.assert_close(packed[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=f"{{}} in {name}".format)


def test_several_packed_rows_in_one_micro_batch_change_nothing(tmp_path: Path) -> None:
    network, rows = llama(), dataset()
    alone, _, lines = one_step(network, rows, tmp_path, packing=True, max_length=LENGTH, per_device_train_batch_size=1)
    together, _, one = one_step(network, rows, tmp_path, packing=True, max_length=LENGTH, per_device_train_batch_size=lines)
    assert one == 1
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_job_packs_on_cpus(make_run: MakeRun, tmp_path: Path, tiny_model: Path) -> None:
    """Eight rows fill one of 512 tokens: the first step's loss is the plain model's over all of them."""
    settings = {"packing": True, "maxLength": 512, "globalBatchSize": 1, "microBatchSize": 1, "maxSteps": 2}
    run = make_run(training=LORA | settings)
    prepare(run, tmp_path, micro_batch_size=1)
    result, losses = trained(run, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    total, count, tokens = 0.0, 0, 0
    for pair in PAIRS:
        row = render(tokenizer, *pair)
        learned = torch.tensor(labels(row))
        with torch.no_grad():
            loss = network(input_ids=torch.tensor([row.input_ids]), labels=learned[None]).loss
        answers = int((learned[1:] >= 0).sum())
        total, count, tokens = total + float(loss) * answers, count + answers, tokens + len(learned)
    assert losses.by_step[1] == pytest.approx(total / count, rel=1e-5)
    assert result.train is not None
    assert result.train.tokens == 2 * tokens
