"""Where cuDNN computes attention, and what it is told: a plan of plain torch stands in its kernels' place."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.trainer.counting import Count
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from finetune_trainer.speed import cudnn_attention, cudnn_plan
from finetune_trainer.speed.activations import _policy
from finetune_trainer.speed.attention import Rows, by_gpu, by_mask
from finetune_trainer.speed.cudnn_plan import CudnnPlan, Form

LENGTHS = (5, 29, 1, 17)


class Plain:
    """What a plan computes, by the documents that offsets and lengths tell of: each in float64 and by itself."""

    made: list[Form] = []  # noqa: RUF012

    def __init__(self, form: Form) -> None:
        self.form = form
        self.made.append(form)

    def documents(self, offsets: Tensor, lengths: Tensor) -> list[tuple[slice, slice, slice]]:
        form = self.form
        if not form.offsets:
            return [(slice(0, form.tokens),) * 3]
        assert len(lengths) == offsets.shape[1] - 1 == form.documents
        assert lengths.max() <= form.longest
        assert lengths.sum() <= form.tokens
        widths = (form.heads * form.dim, form.groups * form.dim, form.heads)
        begins = [row // width for row, width in zip(offsets[:, :-1], widths, strict=True)]
        return [tuple(slice(b, b + n) for b in place) for *place, n in zip(*begins, lengths, strict=True)]  # type: ignore[misc]

    def answer(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens, heads, dim), and the logarithm of the sum of its scores' exponentials."""
        times = self.form.heads // self.form.groups
        keys, values = (t.repeat_interleave(times, dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, keys) * self.form.scale
        place = torch.arange(len(q))
        distance = place[:, None] - place[None, :]
        seen = (distance >= 0) & (distance < (self.form.window or len(q)))
        scores = scores.masked_fill(~seen, -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values), scores.logsumexp(-1).t()[..., None]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        out, statistics = torch.full_like(q, torch.nan), q.new_full((*q.shape[:2], 1), torch.nan)
        for mine, theirs, own in self.documents(offsets, lengths):
            out[mine], statistics[own] = self.answer(q[mine], k[theirs], v[theirs])
        return out, statistics

    def backward(
        self, given: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, statistics: Tensor, offsets: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        again = self.forward(q, k, v, offsets, lengths)
        torch.testing.assert_close((out, statistics), again)
        found = tuple(torch.zeros_like(t) for t in (q, k, v))
        for mine, theirs, _ in self.documents(offsets, lengths):
            with torch.enable_grad():
                parts = [t[s].detach().requires_grad_() for t, s in ((q, mine), (k, theirs), (v, theirs))]
                gradients = torch.autograd.grad(self.answer(*parts)[0], parts, given[mine])
            for whole, part, place in zip(found, gradients, (mine, theirs, theirs), strict=True):
                whole[place] = part
        return found  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def nothing_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn_attention, "_plans", {})
    monkeypatch.setattr(cudnn_plan, "CudnnPlan", Plain)
    monkeypatch.setattr(Plain, "made", [])


def numbers(lengths: tuple[int, ...], dim: int = 64) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Rows]:
    """Queries of four heads, keys and values of two; a gradient; and the documents."""
    torch.manual_seed(0)
    q, k, v, upper = (torch.randn(sum(lengths), heads, dim, dtype=torch.float64) for heads in (4, 2, 2, 4))
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return (q.requires_grad_(), k.requires_grad_(), v.requires_grad_()), upper, Rows(ends, max(lengths), None)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("lengths", [LENGTHS, (30,)], ids=["some documents", "one"])
@pytest.mark.parametrize("lonely", [16384, 1], ids=["by offsets", "a line of one document by itself"])
def test_it_is_told_what_the_mask_says(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], window: int | None, lonely: int
) -> None:
    """Answers and gradients, though empty documents stand behind the line's own."""
    monkeypatch.setattr(cudnn_attention, "LONELY", lonely)
    monkeypatch.setattr(cudnn_attention, "WHOLE_STEP", 1)
    given, upper, rows = numbers(lengths)
    mine = cudnn_attention.attend(*given, rows.ends, rows.longest, window, 0.2)
    assert mine is not None
    plain = by_mask(nn.Identity(), *given, Rows(rows.ends, rows.longest, window), 0.2, {})
    torch.testing.assert_close(mine, plain)
    for found, wanted in zip(torch.autograd.grad(mine, given, upper), torch.autograd.grad(plain, given, upper), strict=True):
        torch.testing.assert_close(found, wanted)
    assert [form.offsets for form in Plain.made] == [not (lonely == 1 and lengths == (30,))]


@pytest.mark.parametrize(
    ("tokens", "documents", "longest", "form"),
    [
        (16380, 83, 700, (128, 2048, 16384)),
        (16384, 129, 2048, (256, 2048, 16384)),
        (16385, 1, 16385, (32, 32768, 18432)),
        (40, 32, 20, (32, 2048, 2048)),
        (9000, 2, 8192, (32, 8192, 10240)),
    ],
)
def test_forms_are_few(tokens: int, documents: int, longest: int, form: tuple[int, int, int]) -> None:
    q, k, ends = (
        torch.empty(tokens, 4, 16, device="meta"),
        torch.empty(tokens, 2, 16, device="meta"),
        torch.empty(documents + 1),
    )
    found = cudnn_attention.form_of(q, k, ends, longest, None, None)
    assert (found.documents, found.longest, found.tokens, found.offsets) == (*form, True)
    assert found.scale == 0.25


def test_a_line_that_is_one_long_document_needs_no_offsets() -> None:
    q, k = torch.empty(32768, 4, 16, device="meta"), torch.empty(32768, 2, 16, device="meta")
    found = cudnn_attention.form_of(q, k, torch.empty(2), 32768, None, None)
    assert (found.documents, found.longest, found.tokens, found.offsets) == (1, 32768, 32768, False)


@pytest.mark.parametrize("dim", [256, 96, 80, 8])
def test_heads_that_it_was_not_tried_with_have_no_plan(dim: int) -> None:
    given, _, rows = numbers(LENGTHS, dim)
    assert cudnn_attention.attend(*given, rows.ends, rows.longest, None, None) is None
    assert Plain.made == []


def test_a_form_without_kernels_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Form] = []

    def none(form: Form) -> Any:
        asked.append(form)
        raise RuntimeError("No valid engine configs\nand more")

    monkeypatch.setattr(cudnn_plan, "CudnnPlan", none)
    given, _, rows = numbers(LENGTHS)
    for _ in range(2):
        assert cudnn_attention.attend(*given, rows.ends, rows.longest, None, None) is None
    assert len(asked) == 1
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert told.endswith(": No valid engine configs\n")


def test_numbers_that_are_not_of_16_bits_are_not_taken_for_such(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = SimpleNamespace(BFLOAT16="bfloat16", HALF="half", FLOAT="float")
    begun: list[str] = []

    def graph(**types: Any) -> Any:
        begun.append(types["io_data_type"])
        raise RuntimeError("no GPU")

    monkeypatch.setattr(cudnn_plan, "CudnnPlan", CudnnPlan)
    monkeypatch.setattr(cudnn_plan, "_library", lambda: SimpleNamespace(data_type=kinds, pygraph=graph))
    monkeypatch.setattr(cudnn_plan, "_handle", lambda _: None)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given, _, rows = numbers(LENGTHS)
        q, k, v = (t.to(dtype) for t in given)
        assert cudnn_attention.attend(q, k, v, rows.ends, rows.longest, None, None) is None
    assert begun == ["bfloat16", "half"]


@pytest.mark.parametrize(
    ("capability", "version", "said"),
    [
        ((9, 0), 91900, "cuDNN"),
        ((9, 0), 92000, "cuDNN"),
        ((9, 0), 91801, "FlashAttention 2, as cuDNN 91801 is older than 91900"),
        ((9, 0), ImportError("No module"), "FlashAttention 2, as cuDNN's frontend is not there (No module)"),
        ((9, 0), OSError("libcudnn.so.9"), "FlashAttention 2, as cuDNN's frontend is not there (libcudnn.so.9)"),
        ((9, 0), AssertionError("Found 2"), "FlashAttention 2, as cuDNN's frontend is not there (Found 2)"),
        ((8, 9), 92000, "FlashAttention 2, as cuDNN's was measured on Hopper alone"),
        ((10, 0), 92000, "FlashAttention 2, as cuDNN's was measured on Hopper alone"),
    ],
)
def test_which_machines_it_is_taken_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    capability: tuple[int, int],
    version: int | Exception,
    said: str,
) -> None:
    def library() -> Any:
        if isinstance(version, Exception):
            raise version
        return SimpleNamespace(backend_version=lambda: version)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(cudnn_plan, "_library", library)
    cudnn_attention.available.cache_clear()
    try:
        assert [cudnn_attention.available() for _ in range(2)] == [said == "cuDNN"] * 2
    finally:
        cudnn_attention.available.cache_clear()
    assert capsys.readouterr().out == f"attention over packed rows: {said}\n"


def test_gpus_take_it_where_it_has_a_plan_and_flash_attention_else(monkeypatch: pytest.MonkeyPatch) -> None:
    flash: list[int] = []

    def varlen(q: Tensor, *_: Any, **__: Any) -> Tensor:
        flash.append(q.shape[-1])
        return q

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    monkeypatch.setattr(cudnn_attention, "available", lambda: True)
    for dim in (64, 256):
        given, _, rows = numbers(LENGTHS, dim)
        by_gpu(nn.Identity(), *given, rows, None, {})
    assert ([form.dim for form in Plain.made], flash) == ([64], [256])
    monkeypatch.setattr(cudnn_attention, "available", lambda: False)
    given, _, rows = numbers(LENGTHS)
    by_gpu(nn.Identity(), *given, rows, None, {})
    assert (len(Plain.made), flash) == (1, [256, 64])


def test_selective_checkpointing_keeps_its_answers() -> None:
    given, upper, rows = numbers(LENGTHS)

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = cudnn_attention.attend(q, k, v, rows.ends, rows.longest, None, None)
        assert found is not None
        return found.exp()

    with Count() as count:
        kept = checkpoint(
            layer,
            *given,
            use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts(lambda *a, **k: _policy(0, *a, **k)),
        )
        torch.autograd.grad(kept, given, upper)
    assert count.calls["finetune::packed_attention"] == 1
