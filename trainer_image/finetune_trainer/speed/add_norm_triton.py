"""The Triton kernels of add_norm.py: a program for each token, sums in float32."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def forward(x_ptr, more_ptr, weight_ptr, sum_ptr, out_ptr, scale_ptr, width, epsilon, BLOCK: tl.constexpr):
    """x + more; it over its root mean square, times the weight; and the former's reciprocal, in float32."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    mask, at = place < width, row * width + place
    kind = sum_ptr.dtype.element_ty
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    both = (x + tl.load(more_ptr + at, mask=mask, other=0.0).to(tl.float32)).to(kind)
    tl.store(sum_ptr + at, both, mask=mask)
    both = both.to(tl.float32)
    scale = tl.rsqrt(tl.sum(both * both, axis=0) / width + epsilon)
    weight = tl.load(weight_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, ((both * scale).to(kind).to(tl.float32) * weight).to(kind), mask=mask)
    tl.store(scale_ptr + row, scale)


@triton.jit
def backward(given_ptr, of_sum_ptr, sum_ptr, weight_ptr, scale_ptr, out_ptr, width, BLOCK: tl.constexpr):
    """The gradient of either summand: through the norm, and the sum's own."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    mask, at = place < width, row * width + place
    scale = tl.load(scale_ptr + row)
    normed = tl.load(sum_ptr + at, mask=mask, other=0.0).to(tl.float32) * scale
    weight = tl.load(weight_ptr + place, mask=mask, other=0.0).to(tl.float32)
    given = tl.load(given_ptr + at, mask=mask, other=0.0).to(tl.float32) * weight
    along = tl.sum(given * normed, axis=0) / width
    own = tl.load(of_sum_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, ((given - normed * along) * scale + own).to(out_ptr.dtype.element_ty), mask=mask)
