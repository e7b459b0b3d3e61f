"""The Triton kernels of gated.py: SwiGLU and the adapters' products with what it reads and writes, each in one sweep.

A tile is TILE_T tokens by TILE_F numbers of the MLP's width. RANK is the adapters' rank or more: tensor cores take 16 at least.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def forward(
    gate_ptr, up_ptr, xa_ptr, bg_ptr, bu_ptr, a_ptr, hidden_ptr, ha_ptr, tokens, width, rank, scale_g, scale_u, turns,
    TILE_T: tl.constexpr, TILE_F: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """hidden, and hidden Aᵀ summed over this program's `turns` tiles of the width: (programs, tokens, rank) in float32."""
    t = tl.program_id(0).to(tl.int64) * TILE_T + tl.arange(0, TILE_T)
    r = tl.arange(0, RANK)
    low = (t < tokens)[:, None] & (r < rank)[None, :]
    kind = hidden_ptr.dtype.element_ty
    at = xa_ptr + t[:, None] * (2 * rank) + r[None, :]
    xg, xu = tl.load(at, mask=low, other=0.0), tl.load(at + rank, mask=low, other=0.0)
    total = tl.zeros((TILE_T, RANK), tl.float32)
    for turn in range(turns):
        f = (tl.program_id(1) * turns + turn) * TILE_F + tl.arange(0, TILE_F)
        wide = (t < tokens)[:, None] & (f < width)[None, :]
        where = t[:, None] * width + f[None, :]
        b_at, b_mask = f[None, :] * rank + r[:, None], (r < rank)[:, None] & (f < width)[None, :]
        bg = tl.load(bg_ptr + b_at, mask=b_mask, other=0.0).to(kind)
        bu = tl.load(bu_ptr + b_at, mask=b_mask, other=0.0).to(kind)
        a = tl.load(a_ptr + f[:, None] + r[None, :] * width, mask=(f < width)[:, None] & (r < rank)[None, :], other=0.0)
        gate = tl.load(gate_ptr + where, mask=wide, other=0.0).to(tl.float32) + scale_g * tl.dot(xg, bg)
        up = tl.load(up_ptr + where, mask=wide, other=0.0).to(tl.float32) + scale_u * tl.dot(xu, bu)
        hidden = (gate * tl.sigmoid(gate) * up).to(kind)
        tl.store(hidden_ptr + where, hidden, mask=wide)
        total = tl.dot(hidden, a.to(kind), total)
    tl.store(ha_ptr + (tl.program_id(1) * tokens + t[:, None]) * rank + r[None, :], total, mask=low)


@triton.jit
def backward(
    gate_ptr, up_ptr, grad_ptr, xa_ptr, over_ptr, bg_ptr, bu_ptr, a_ptr, dgate_ptr, low_ptr, d_ptr,
    tokens, width, rank, scale_g, scale_u, turns,
    TILE_T: tl.constexpr, TILE_F: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """d gate, and d up over the incoming gradient.

    Of this program's numbers of the width, (programs, tokens, 2 rank): s d gate B and s d up B. Of its `turns` tiles of tokens,
    (programs, 3, width, rank) in float32: the gradients of gate's B and up's, and that of the last A turned round.
    """
    f = tl.program_id(0) * TILE_F + tl.arange(0, TILE_F)
    r = tl.arange(0, RANK)
    kind = dgate_ptr.dtype.element_ty
    narrow = (f < width)[:, None] & (r < rank)[None, :]
    b_at = f[:, None] * rank + r[None, :]
    bg = tl.load(bg_ptr + b_at, mask=narrow, other=0.0).to(kind)
    bu = tl.load(bu_ptr + b_at, mask=narrow, other=0.0).to(kind)
    a = tl.load(a_ptr + f[None, :] + r[:, None] * width, mask=(f < width)[None, :] & (r < rank)[:, None], other=0.0).to(kind)
    dbg = tl.zeros((TILE_F, RANK), tl.float32)
    dbu = tl.zeros((TILE_F, RANK), tl.float32)
    da = tl.zeros((TILE_F, RANK), tl.float32)
    for turn in range(turns):
        t = (tl.program_id(1).to(tl.int64) * turns + turn) * TILE_T + tl.arange(0, TILE_T)
        low = (t < tokens)[:, None] & (r < rank)[None, :]
        wide = (t < tokens)[:, None] & (f < width)[None, :]
        where = t[:, None] * width + f[None, :]
        at = xa_ptr + t[:, None] * (2 * rank) + r[None, :]
        xg, xu = tl.load(at, mask=low, other=0.0), tl.load(at + rank, mask=low, other=0.0)
        over = tl.load(over_ptr + t[:, None] * rank + r[None, :], mask=low, other=0.0)
        gate = tl.load(gate_ptr + where, mask=wide, other=0.0).to(tl.float32) + scale_g * tl.dot(xg, tl.trans(bg))
        up = tl.load(up_ptr + where, mask=wide, other=0.0).to(tl.float32) + scale_u * tl.dot(xu, tl.trans(bu))
        grad = tl.load(grad_ptr + where, mask=wide, other=0.0).to(tl.float32) + tl.dot(over, a)
        sigma = tl.sigmoid(gate)
        silu = gate * sigma
        hidden = (silu * up).to(kind)
        dgate = (grad * up * sigma * (1 + gate * (1 - sigma))).to(kind)
        dup = (grad * silu).to(kind)
        tl.store(dgate_ptr + where, dgate, mask=wide)
        tl.store(grad_ptr + where, dup, mask=wide)
        out = low_ptr + (tl.program_id(0) * tokens + t[:, None]) * (2 * rank) + r[None, :]
        tl.store(out, (scale_g * tl.dot(dgate, bg)).to(low_ptr.dtype.element_ty), mask=low)
        tl.store(out + rank, (scale_u * tl.dot(dup, bu)).to(low_ptr.dtype.element_ty), mask=low)
        dbg = tl.dot(tl.trans(dgate), xg, dbg)
        dbu = tl.dot(tl.trans(dup), xu, dbu)
        da = tl.dot(tl.trans(hidden), over, da)
    to = d_ptr + tl.program_id(1).to(tl.int64) * 3 * width * rank + b_at
    tl.store(to, scale_g * dbg, mask=narrow)
    tl.store(to + width * rank, scale_u * dbu, mask=narrow)
    tl.store(to + 2 * width * rank, da, mask=narrow)
