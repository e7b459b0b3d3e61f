"""The Triton kernels of fp8.py. But for the first, a program takes a row: once for its largest number, and once more, from the
cache that it has just been in, to write it in FP8.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803

import triton
import triton.language as tl

LARGEST: tl.constexpr = tl.constexpr(448.0)


@triton.jit
def expand_turned(
    packed_ptr, absmax_ptr, code_ptr, out_ptr, rows, columns, width, at, SHARED: tl.constexpr, TILE: tl.constexpr
):
    """A 4-bit weight (rows, columns), SHARED numbers to a scale, into columns of an (columns, width) from `at` on. What is
    turned round are bytes of two numbers each, of which the first goes to one row and the second to the next.
    """
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    byte = tl.program_id(1) * (TILE // 2) + tl.arange(0, TILE // 2)
    half = columns // 2
    there = (row[:, None] < rows) & (byte[None, :] < half)
    both = tl.trans(tl.load(packed_ptr + row[:, None] * half + byte[None, :], mask=there, other=0)).to(tl.int32)
    mask = (row[None, :] < rows) & (byte[:, None] < half)
    scale = tl.load(absmax_ptr + (row[None, :] * half + byte[:, None]) // (SHARED // 2), mask=mask, other=0.0)
    upper = tl.load(code_ptr + (both >> 4)) * scale
    lower = tl.load(code_ptr + (both & 15)) * scale
    to = out_ptr + byte[:, None].to(tl.int64) * 2 * width + at + row[None, :]
    tl.store(to, upper.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(to + width, lower.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def by_rows(
    a_ptr, b_ptr, c_ptr, values_ptr, scales_ptr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr
):
    """Matrices that are A, B and C wide, side by side."""
    row = tl.program_id(0).to(tl.int64)
    largest = _largest(a_ptr + row * A, A, BLOCK)
    largest = tl.maximum(largest, _largest(b_ptr + row * B, B, BLOCK))
    largest = tl.maximum(largest, _largest(c_ptr + row * C, C, BLOCK))
    by = _scale(scales_ptr + row, largest)
    to = values_ptr + row * (A + B + C)
    _write(a_ptr + row * A, to, by, A, BLOCK)
    _write(b_ptr + row * B, to + A, by, B, BLOCK)
    _write(c_ptr + row * C, to + A + B, by, C, BLOCK)


@triton.jit
def swiglu(gate_ptr, up_ptr, hidden_ptr, values_ptr, scales_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = row * WIDTH
    largest = tl.full([], 0.0, tl.float32)
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < WIDTH
        gate = tl.load(gate_ptr + first + at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + first + at, mask=mask, other=0.0).to(tl.float32)
        hidden = (gate * tl.sigmoid(gate) * up).to(hidden_ptr.dtype.element_ty)
        tl.store(hidden_ptr + first + at, hidden, mask=mask)
        largest = tl.maximum(largest, tl.max(tl.abs(hidden.to(tl.float32)), axis=0))
    tl.debug_barrier()
    by = _scale(scales_ptr + row, largest)
    _write(hidden_ptr + first, values_ptr + first, by, WIDTH, BLOCK)


@triton.jit
def swiglu_backward(
    gate_ptr, up_ptr, grad_ptr, hidden_ptr, dgate_ptr, values_ptr, scales_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Writes the product to hidden, d gate to dgate, d up over the incoming gradient; both gradients side by side in FP8."""
    row = tl.program_id(0).to(tl.int64)
    first = row * WIDTH
    largest = tl.full([], 0.0, tl.float32)
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < WIDTH
        gate = tl.load(gate_ptr + first + at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + first + at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + first + at, mask=mask, other=0.0).to(tl.float32)
        sigma = tl.sigmoid(gate)
        silu = gate * sigma
        dgate = (grad * up * sigma * (1 + gate * (1 - sigma))).to(dgate_ptr.dtype.element_ty)
        dup = (grad * silu).to(grad_ptr.dtype.element_ty)
        tl.store(hidden_ptr + first + at, silu * up, mask=mask)
        tl.store(dgate_ptr + first + at, dgate, mask=mask)
        tl.store(grad_ptr + first + at, dup, mask=mask)
        both = tl.maximum(tl.abs(dgate.to(tl.float32)), tl.abs(dup.to(tl.float32)))
        largest = tl.maximum(largest, tl.max(both, axis=0))
    tl.debug_barrier()
    by = _scale(scales_ptr + row, largest)
    _write(dgate_ptr + first, values_ptr + 2 * first, by, WIDTH, BLOCK)
    _write(grad_ptr + first, values_ptr + 2 * first + WIDTH, by, WIDTH, BLOCK)


@triton.jit
def _largest(row_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    found = tl.full([], 0.0, tl.float32)
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        found = tl.maximum(found, tl.max(tl.abs(x), axis=0))
    return found


@triton.jit
def _scale(scale_ptr, largest):
    """Tell the row's scale; what its numbers are multiplied by. A row of zeros may have any."""
    is_zero = largest == 0.0
    tl.store(scale_ptr, tl.where(is_zero, 1.0, largest / LARGEST))
    return tl.where(is_zero, 1.0, LARGEST / tl.where(is_zero, 1.0, largest))


@triton.jit
def _write(row_ptr, to_ptr, by, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < WIDTH
        x = tl.load(row_ptr + at, mask=mask, other=0.0).to(tl.float32) * by
        tl.store(to_ptr + at, x.to(to_ptr.dtype.element_ty), mask=mask)
