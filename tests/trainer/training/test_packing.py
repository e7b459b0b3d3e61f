"""Packed rows learn what padded ones do: rows that share a line of tokens never attend to each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.trainer.conftest import train_tokenizer
from tests.trainer.entries import PAIRS, prepare, render
from tests.trainer.speed.test_recorded_layers import DoneAgain
from tests.trainer.training.test_train import LORA, MakeRun, trained
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from trl import SFTConfig

from finetune_trainer.data.tokenized import IGNORED, labels
from finetune_trainer.speed.fixed_lines import Line
from finetune_trainer.speed.recorded_layers import RecordedLayers
from finetune_trainer.training.head import COUNTED, Counting, is_scaled_otherwise, log_probabilities
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


def one_step(
    network: Any, rows: Dataset, folder: Path, *, counted: bool = False, line: Line | None = None, **settings: Any
) -> tuple[float, dict[str, torch.Tensor], int]:
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
    if line is not None:
        loop.recorded = RecordedLayers(network.model.layers, line, DoneAgain())
    if counted:
        loop.count_beforehand()
        assert isinstance(loop.data_collator, Counting)
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


def scaled_up() -> Any:
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=3.0))


def scaled_down() -> Any:
    torch.manual_seed(0)
    return GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0))


def bounded() -> Any:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=2.0))


@pytest.mark.parametrize("make", [llama, scaled_up, scaled_down, bounded])
def test_tokens_that_are_counted_beforehand_have_the_loss_that_trl_finds(make: Any, tmp_path: Path) -> None:
    """Also where a micro-batch is filled up to a line of fixed length, over which the layers' work is recorded."""
    network, rows = make(), dataset()
    packed: dict[str, Any] = {"packing": True, "padding_free": True, "max_length": LENGTH, "per_device_train_batch_size": 2}
    loss, gradients, _ = one_step(network, rows, tmp_path, **packed)
    for line in (None, Line(2 * LENGTH + 40, LENGTH)):
        ours, found, _ = one_step(network, rows, tmp_path, counted=True, line=line, **packed)
        assert ours == pytest.approx(loss, rel=1e-5)
        assert gradients.keys() == found.keys()
        for name, gradient in gradients.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=f"{{}} in {name}".format)


def test_a_micro_batch_of_which_nothing_counts_has_no_loss_and_no_gradient() -> None:
    network, row = llama(), torch.tensor([dataset()[0]["input_ids"]])
    batch = Counting(lambda _: {"input_ids": row, "labels": torch.full_like(row, IGNORED)})(None)
    found = log_probabilities(network, batch, batch.pop(COUNTED))
    found.sum().backward()
    assert found.shape == (0,)
    assert not any(p.grad is not None and p.grad.any() for p in network.parameters())


def test_logits_that_are_scaled_in_other_ways_are_left_to_trl(tmp_path: Path) -> None:
    network = llama()
    network.config.lm_head_multiplier = 2.0
    assert is_scaled_otherwise(network)
    arguments = SFTConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, padding_free=True, max_length=None
    )
    loop = SupervisedLoop(model=network, args=arguments, train_dataset=dataset(), processing_class=train_tokenizer())
    loop.count_beforehand()
    assert not isinstance(loop.data_collator, Counting)


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
