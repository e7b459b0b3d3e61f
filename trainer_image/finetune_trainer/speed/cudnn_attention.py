"""Attention over packed rows by cuDNN's fused kernels: on Hopper half of FlashAttention 2's time forward, 60 to 85 % backward.

cuDNN makes a plan for one shape: so many documents, the longest one's tokens and, for the memory it works in, the tokens of
all. Making one takes some 0.1 s (the first ones 1 s, as their kernels are compiled), so all three are rounded up to one of few
steps: documents that are not there are empty ones at the line's end, and neither they nor tokens that a document has not cost
any time that could be measured. Where a document's numbers begin is told by offsets.

Which GPUs and which layers it computes for is decided here alone; all else stays with torch's flash attention (attention.py).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from finetune_trainer.speed import cudnn_plan
from finetune_trainer.speed.cudnn_plan import Form

OLDEST = 91900  # cuDNN 9.19, the first that was held against flash attention (benchmarks/h100.md)
GENERATION = 9  # of compute capability: Hopper; what it does on others was not measured
HEADS = frozenset({64, 128})  # widths with which it was seen to be right on a GPU, gradients too
FEWEST, SHORTEST, TOKENS_STEP = 32, 2048, 2048  # documents, doubled from there on; the longest one's tokens, four times as many
LONELY = 16384  # tokens from which on a line with one document has a plan without offsets, 6 % faster
WHOLE_STEP = 1024  # such a plan fits one length: lengths between these steps would make too many


class Plan(Protocol):
    """Attention over lines of one form: (tokens, heads, dim), and statistics (tokens, heads, 1) in float32 for the way back."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]: ...

    def backward(
        self, given: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, statistics: Tensor, offsets: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...


# ── Whether ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache
def available() -> bool:
    """Whether this process takes cuDNN's attention where it can; told in the log, once."""
    why = _why_not()
    print(f"attention over packed rows: {'cuDNN' if why is None else f'FlashAttention 2, as {why}'}", flush=True)
    return why is None


def _why_not() -> str | None:
    """What is against cuDNN's attention on this machine."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != GENERATION:
        return "cuDNN's was measured on Hopper alone"
    try:
        version = cudnn_plan.version()
    except Exception as error:  # of an import that loads libraries: OSError, AssertionError and cuDNN's own, too
        return f"cuDNN's frontend is not there ({error})"
    return None if version >= OLDEST else f"cuDNN {version} is older than {OLDEST}"


def form_of(q: Tensor, k: Tensor, ends: Tensor, longest: int, window: int | None, scale: float | None) -> Form:
    """The form of a line, rounded up."""
    (tokens, heads, dim), documents = q.shape, len(ends) - 1
    lonely = documents == 1 and tokens >= LONELY and tokens % WHOLE_STEP == 0
    return Form(
        documents=1 if lonely else _up(documents, FEWEST, 2),
        longest=tokens if lonely else _up(longest, SHORTEST, 4),
        tokens=tokens if lonely else -(-tokens // TOKENS_STEP) * TOKENS_STEP,
        heads=heads,
        groups=k.shape[1],
        dim=dim,
        window=window,
        scale=dim**-0.5 if scale is None else scale,
        dtype=q.dtype,
        device=q.device.index or 0,
        offsets=not lonely,
    )


def _up(number: int, least: int, times: int) -> int:
    """The first of least, times as many and so on that is not smaller."""
    while least < number:
        least *= times
    return least


_plans: dict[Form, Plan | None] = {}


def plan_of(form: Form) -> Plan | None:
    """The plan of a form, made once; None where cuDNN has none, which is told once."""
    if form.dim not in HEADS:
        return None
    if form not in _plans:
        try:
            with ThreadPoolExecutor(1) as aside:  # a thread whose work may be recorded just now may load no kernels
                _plans[form] = aside.submit(cudnn_plan.CudnnPlan, form).result()
        except Exception as error:  # cuDNN's own have no class in common
            short = str(error).partition("\n")[0]
            print(f"attention over packed rows: FlashAttention 2, as cuDNN has no plan for {form}: {short}", flush=True)
            _plans[form] = None
    return _plans[form]


# ── What is computed ──────────────────────────────────────────────────────────────────────────────────────────────────


def attend(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, window: int | None, scale: float | None
) -> Tensor | None:
    """Attention of (tokens, heads, dim) over documents that end at `ends`; None where cuDNN has no plan for it.

    A window of w tokens holds the token itself and w - 1 before it.
    """
    form = form_of(q, k, ends, longest, window, scale)
    if plan_of(form) is None:
        return None
    where = _placed(ends, form)
    shape = (form.documents, form.longest, form.tokens, form.window or 0, form.scale, form.offsets)
    out: Tensor = _attention(q.contiguous(), k.contiguous(), v.contiguous(), *where, *shape)[0]
    return out


_places: Any = WeakTensorKeyDictionary()  # of a line's ends, by form: made once for all layers


def _placed(ends: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """`placed`, made once for all layers of a line; anew in each of them while CUDA graphs record, as a record that is played
    again must make them from the ends that it is given then."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return placed(ends, form)
    made = _places.setdefault(ends, {})
    key = (form.documents, form.heads, form.groups, form.dim)
    if key not in made:
        made[key] = placed(ends, form)
    found: tuple[Tensor, Tensor] = made[key]
    return found


def placed(ends: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Where each document begins, in numbers: (3, documents + 1) for queries, for keys and for statistics, the last one's end
    included; and each document's tokens. Nothing is read from the GPU for it."""
    missing = form.documents + 1 - len(ends)
    if missing:
        ends = torch.cat([ends, ends[-1:].expand(missing)])
    long = ends.to(torch.int64)
    widths = (form.heads * form.dim, form.groups * form.dim, form.heads)
    return torch.stack([long * width for width in widths]), torch.diff(ends).to(torch.int32)


# An operator, so that selective checkpointing (activations.py) knows its answer and keeps it.
@torch.library.custom_op("finetune::packed_attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    documents: int,
    longest: int,
    tokens: int,
    window: int,
    scale: float,
    with_offsets: bool,
) -> tuple[Tensor, Tensor]:
    return _planned(q, k, documents, longest, tokens, window, scale, with_offsets).forward(q, k, v, offsets, lengths)


def _planned(
    q: Tensor, k: Tensor, documents: int, longest: int, tokens: int, window: int, scale: float, with_offsets: bool
) -> Plan:
    sizes, device = (q.shape[1], k.shape[1], q.shape[2]), q.device.index or 0
    form = Form(documents, longest, tokens, *sizes, window or None, scale, q.dtype, device, with_offsets)
    plan = plan_of(form)
    assert plan is not None  # `attend` has seen it
    return plan


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.shape = inputs[5:]


def _back(ctx: Any, given: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, offsets, lengths, out, statistics = ctx.saved_tensors
    plan = _planned(q, k, *ctx.shape)
    gradients = plan.backward(given.contiguous(), q, k, v, out, statistics, offsets, lengths)
    return (*gradients, *(None for _ in range(2 + len(ctx.shape))))


_attention.register_autograd(_back, setup_context=_keep)
