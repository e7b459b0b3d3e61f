"""The Triton kernels of swiglu.py. Elementwise, in float32 registers, one sweep each."""

import triton
import triton.language as tl


@triton.jit
def forward(gate_ptr, up_ptr, out_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    gate = tl.load(gate_ptr + at, mask=mask).to(tl.float32)
    up = tl.load(up_ptr + at, mask=mask).to(tl.float32)
    tl.store(out_ptr + at, gate * tl.sigmoid(gate) * up, mask=mask)


@triton.jit
def backward(gate_ptr, up_ptr, grad_ptr, hidden_ptr, dgate_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Writes the product to hidden, d gate to dgate, and d up over the incoming gradient."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    gate = tl.load(gate_ptr + at, mask=mask).to(tl.float32)
    up = tl.load(up_ptr + at, mask=mask).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=mask).to(tl.float32)
    sigma = tl.sigmoid(gate)
    silu = gate * sigma
    tl.store(hidden_ptr + at, silu * up, mask=mask)
    tl.store(dgate_ptr + at, grad * up * sigma * (1 + gate * (1 - sigma)), mask=mask)
    tl.store(grad_ptr + at, grad * silu, mask=mask)
