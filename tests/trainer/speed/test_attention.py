"""The attention that GPUs train with computes each family's own: torch's plain reference stands in its kernel's place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.families import FAMILIES, SHAPE, configuration, save
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_trainer.memory.shape import plain_attention_of
from finetune_trainer.speed.attention import KNOWN, PACKED, Rows, asked_by, by_gpu, by_mask, implementation, register

LENGTHS = (5, 29, 17)  # of the rows on one line, two of them longer than a family's window


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What torch's varlen_attn is documented to compute: (tokens, heads, dim) by documents, within a window to the left."""
    assert cu_seq_q is cu_seq_k
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert enable_gqa
    assert window_size[1] == 0
    number = torch.arange(len(query))
    document = torch.bucketize(number, cu_seq_q[1:], right=True)
    distance = number[:, None] - number[None, :]
    seen = (document[:, None] == document[None, :]) & (distance >= 0)
    if window_size[0] >= 0:
        seen &= distance <= window_size[0]
    q, k, v = (t.transpose(0, 1)[None] for t in (query, key, value))
    answered = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
    return answered[0].transpose(0, 1)


def rows() -> list[Tensor]:
    return [torch.randint(4, 500, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]


def on_one_line() -> dict[str, Any]:
    """The rows as TRL's collator lays them end to end."""
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    return {
        "input_ids": torch.cat(rows())[None],
        "position_ids": torch.cat([torch.arange(n) for n in LENGTHS])[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
        "use_cache": False,
    }


@torch.no_grad()
def eager(folder: Path) -> Tensor:
    """Logits of each row by itself, by transformers' plainest attention, which has all that a model asks for."""
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return torch.cat([network(input_ids=row[None], use_cache=False).logits[0] for row in rows()])


# Families whose rows are padded on a GPU, as transformers alone computes what they ask for.
PADDED = {
    "gpt2": "its attention drops out",
    "seed_oss": "its attention drops out",
    "stablelm": "its layers are not told where rows end",
    "bloom": "ALiBi, by code of its own",
    "falcon_h1": "state spaces and convolutions beside attention",
    "lfm2": "convolutions",
}
FLEXIBLE = {"gemma2": {"softcap"}, "gpt_oss": {"s_aux"}}  # beyond flash attention


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's and transformers' kernels for GPUs, as they are documented, on this machine."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference)
    monkeypatch.setattr("finetune_trainer.speed.attention._flex", by_mask)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("on_gpu", [True, False], ids=["GPU", "CPU"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_on_one_line_have_the_logits_of_each_by_itself(family: str, on_gpu: bool, tmp_path: Path) -> None:
    save(family, tmp_path)
    name = implementation(tmp_path, on_gpu=on_gpu)
    assert name == (None if family in PADDED else PACKED)
    if name is None:
        return
    network = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name).eval()
    with torch.no_grad():
        found = network(**on_one_line()).logits[0]
    torch.testing.assert_close(found, eager(tmp_path), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_padded_rows_have_the_logits_of_each_by_itself(family: str, tmp_path: Path) -> None:
    """Preferences and validation rows are such rows; padding on the right is seen by no token before it."""
    save(family, tmp_path)
    network = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=register(by_mask)).eval()
    longest = max(LENGTHS)
    with torch.no_grad():
        padded = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows()])
        logits = network(input_ids=padded, use_cache=False).logits
    found = torch.cat([answer[:n] for answer, n in zip(logits, LENGTHS, strict=True)])
    torch.testing.assert_close(found, eager(tmp_path), rtol=1e-3, atol=1e-4)


def test_nothing_that_a_layer_asks_for_is_left_out_in_silence(tmp_path: Path) -> None:
    save("gpt2", tmp_path)
    network = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=register(by_mask)).train()
    with pytest.raises(ValueError, match="attention over packed rows has no dropout"):
        network(**on_one_line())


def test_each_family_has_a_row_longer_than_its_window() -> None:
    assert SHAPE["sliding_window"] < max(LENGTHS)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - PADDED.keys()))
def test_what_attention_asks_for_is_seen_without_weights(family: str, tmp_path: Path) -> None:
    configuration(family).save_pretrained(tmp_path)
    asked = asked_by(tmp_path)
    assert asked is not None
    assert asked.names == FLEXIBLE.get(family, set())


@pytest.mark.parametrize("family", FAMILIES)
def test_how_far_attention_is_plain_is_told_by_the_configuration_alone(family: str, tmp_path: Path) -> None:
    """The rule by which pipeline.py knows the results of before, when no layer had a window, a cap or a sink."""
    unknown = not hasattr(AutoConfig.for_model(family), "sliding_window")
    save(family, tmp_path, **({"sliding_window": None} if unknown else {}))
    assert plain_attention_of(json.loads((tmp_path / "config.json").read_bytes())) == plain_tokens(tmp_path)


def plain_tokens(folder: Path) -> int | None:
    """The same by what the layers ask for. Attention that drops out in training only is plain."""
    asked = asked_by(folder)
    if asked is None or asked.names & KNOWN:
        return 0
    windows: set[int] = set()

    def kernel(*given: Any) -> Tensor:
        windows.update([given[4].window] if given[4].window else [])
        return by_mask(*given)

    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register(kernel)).eval()
    with torch.no_grad():
        network(**on_one_line())
    return min(windows, default=None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels are a GPU's")
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("asked", ["nothing", "softcap", "s_aux"])
def test_kernels_of_gpus_compute_what_the_mask_does(dim: int, window: int | None, asked: str) -> None:
    """Answers and gradients, in BF16 and so within its rounding."""
    torch.manual_seed(0)
    shape = {"device": "cuda", "dtype": torch.bfloat16}
    q, k, v, upper = (torch.randn(700, heads, dim, **shape).requires_grad_() for heads in (8, 2, 2, 8))  # type: ignore[call-overload]
    ends = torch.tensor([0, 130, 500, 700], dtype=torch.int32, device="cuda")
    values = {"nothing": {}, "softcap": {"softcap": 2.0}, "s_aux": {"s_aux": torch.randn(8, **shape)}}[asked]  # type: ignore[call-overload]
    found = []
    for kernel in (by_gpu, by_mask):
        answer = kernel(torch.nn.Identity(), q, k, v, Rows(ends, 370, window), dim**-0.5, values)
        found.append((answer, *torch.autograd.grad(answer, (q, k, v), upper)))
    for mine, plain in zip(*found, strict=True):
        assert (mine - plain).abs().max() < 0.03 * plain.abs().max()
