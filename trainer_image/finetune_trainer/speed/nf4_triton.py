"""The Triton kernel of nf4.py."""

import triton
import triton.language as tl


@triton.jit
def expand(packed_ptr, scales_ptr, code_ptr, out_ptr, n, HALF: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Each of `n` bytes holds two numbers, the first in its upper half; HALF bytes share a scale."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)
    mask = at < n
    both = tl.load(packed_ptr + at, mask=mask, other=0).to(tl.int32)
    scale = tl.load(scales_ptr + at // HALF, mask=mask, other=0.0)
    upper = (tl.load(code_ptr + (both >> 4)) * scale).to(out_ptr.dtype.element_ty)
    lower = (tl.load(code_ptr + (both & 15)) * scale).to(out_ptr.dtype.element_ty)
    to = 2 * first + tl.arange(0, 2 * BLOCK)
    tl.store(out_ptr + to, tl.reshape(tl.join(upper, lower), [2 * BLOCK]), mask=to < 2 * n)
