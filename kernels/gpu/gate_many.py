"""Gate-selected neurons in Triton for many tokens: dense products, with the choice in the epilogue or beside them.

Tokens choose apart, so many of them need all rows. For inference of narrow models the choice and the gate are applied
to x W_inᵀ before it leaves the registers; otherwise one elementwise pass follows PyTorch's product, and one leads its
gradient.

Shapes: n tokens, d model, f neurons, p units.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from slms.kernels.gate_reference import GateCall
from slms.kernels.gpu.choice import keep_neurons, unit_of
from slms.kernels.gpu.gate import gate_choice
from slms.kernels.gpu.grouped import turn
from slms.kernels.gpu.pieces import activate, multiply, narrow, slope
from slms.kernels.gpu.tiles import ACTS, CELLS, arithmetic, masked_tile, upcast

# Up to this d_model the pass over [n, f] that the epilogue saves outweighs what a library product is faster by. It is
# an estimate from bytes and operations of an H100; no GPU has run it.
EPILOGUE_D = 1024


@triton.jit(do_not_specialize=["n"])
def masked_up(
    x,
    W_in,
    b_in,
    gate,
    chosen,
    unit,
    hidden,
    n,
    d,
    f,
    U,
    ACT: tl.constexpr,
    BIASED: tl.constexpr,
    SINGLE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """hidden[t, i] = act(gate[t, i]) · (x[t] · W_in[i] + b_in[i]) where t chose i's unit, else 0."""
    inner = tl.arange(0, INNER)
    index, block = turn(tl.program_id(0), tl.cdiv(n, ROWS), tl.cdiv(f, COLS))
    t, i = index * ROWS + tl.arange(0, ROWS), block * COLS + tl.arange(0, COLS)
    left = x + t.to(tl.int64)[:, None] * d + inner[None, :]
    right = W_in + i.to(tl.int64)[None, :] * d + inner[:, None]
    u = tl.zeros((ROWS, COLS), tl.float32)
    for k in range(0, d, INNER):
        a = tl.load(left + k, mask=(t < n)[:, None] & (inner < d - k)[None, :], other=0.0)
        w = tl.load(right + k, mask=(i < f)[None, :] & (inner < d - k)[:, None], other=0.0)
        u = multiply(a, w, u, PRECISION, UPCAST)
    if BIASED:
        u += tl.load(b_in + i, mask=i < f, other=0.0).to(tl.float32)[None, :]
    inside = (t < n)[:, None] & (i < f)[None, :]
    owner = i
    if not SINGLE:
        owner = tl.load(unit + i, mask=i < f, other=0)
    kept = tl.load(chosen + t.to(tl.int64)[:, None] * U + owner[None, :], mask=inside, other=0) != 0
    cell = t.to(tl.int64)[:, None] * f + i[None, :]
    v = tl.load(gate + cell, mask=inside, other=0.0).to(tl.float32)
    h = tl.where(kept, activate(v, ACT) * u, 0.0)
    tl.store(hidden + cell, narrow(h, hidden.dtype.element_ty, UPCAST), mask=inside)


@triton.jit
def cells_of(chosen, unit, f, U, SINGLE: tl.constexpr, BLOCK: tl.constexpr):
    """This program's cells of [n, f], which of them exist, and which are chosen; a token is a row of programs."""
    t = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    owner = i
    if not SINGLE:
        owner = tl.load(unit + i, mask=i < f, other=0)
    kept = tl.load(chosen + t * U + owner, mask=i < f, other=0) != 0
    return t * f + i, i < f, kept


@triton.jit
def masked_product(
    gate,
    up,
    chosen,
    unit,
    hidden,
    f,
    U,
    ACT: tl.constexpr,
    SINGLE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """hidden = act(gate) · up where chosen, else 0"""
    cell, inside, kept = cells_of(chosen, unit, f, U, SINGLE, BLOCK)
    v = tl.load(gate + cell, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + cell, mask=inside, other=0.0).to(tl.float32)
    h = tl.where(kept, activate(v, ACT) * u, 0.0)
    tl.store(hidden + cell, narrow(h, hidden.dtype.element_ty, UPCAST), mask=inside)


@triton.jit
def product_gradients(
    grad,
    gate,
    up,
    chosen,
    unit,
    d_gate,
    d_up,
    f,
    U,
    ACT: tl.constexpr,
    SINGLE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d_gate = grad · up · act'(gate), d_up = grad · act(gate) where chosen, else 0"""
    cell, inside, kept = cells_of(chosen, unit, f, U, SINGLE, BLOCK)
    e = tl.load(grad + cell, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(gate + cell, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + cell, mask=inside, other=0.0).to(tl.float32)
    dv, du = tl.where(kept, e * u * slope(v, ACT), 0.0), tl.where(kept, e * activate(v, ACT), 0.0)
    tl.store(d_gate + cell, narrow(dv, d_gate.dtype.element_ty, UPCAST), mask=inside)
    tl.store(d_up + cell, narrow(du, d_up.dtype.element_ty, UPCAST), mask=inside)


def _by_cells(kernel: Any, tensors: tuple[Tensor, ...], chosen: Tensor, units: tuple[int, ...], act: str, outs: Any):
    """Launch an elementwise kernel over tensors [n, f]."""
    n, f = tensors[0].shape
    if n * f:
        owners = unit_of(units, chosen.device) if units else chosen
        constants = {"ACT": ACTS[act], "SINGLE": not units, "UPCAST": upcast(tensors[0].dtype), **CELLS}
        with torch.cuda.device_of(chosen):
            places = (*tensors, chosen.view(torch.uint8), owners, *outs)
            kernel[(n, triton.cdiv(f, CELLS["BLOCK"]))](*places, f, chosen.shape[1], **constants)


class MaskedProduct(torch.autograd.Function):
    """act(gate) · up [n, f] where chosen [n, p], else 0."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, chosen: Tensor, units: tuple[int, ...], act: str) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up, chosen)
        ctx.units, ctx.act = units, act
        hidden = torch.empty_like(gate)
        _by_cells(masked_product, (gate, up), chosen, units, act, (hidden,))
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, chosen = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        _by_cells(product_gradients, (grad.contiguous(), gate, up), chosen, ctx.units, ctx.act, (d_gate, d_up))
        return d_gate, d_up, None, None, None


def up_where_chosen(call: GateCall, gate: Tensor, chosen: Tensor, units: tuple[int, ...]) -> Tensor:
    """hidden [n, f]: the product x W_inᵀ, its bias, the gates and the choice in one kernel, without gradients."""
    x, W_in, gate = call.x.contiguous(), call.W_in.contiguous(), gate.contiguous()
    (n, d), f = x.shape, len(W_in)
    hidden = torch.empty_like(gate)
    if hidden.numel():
        tile = masked_tile(x.dtype, n, d % 16 != 0 or f % 16 != 0)
        b_in = x if call.b_in is None else call.b_in.contiguous()
        owners = unit_of(units, x.device) if units else chosen
        tensors = (x, W_in, b_in, gate, chosen.view(torch.uint8), owners, hidden)
        flags = {"ACT": ACTS[call.activation], "BIASED": call.b_in is not None, "SINGLE": not units}
        grid = (triton.cdiv(n, tile.rows) * triton.cdiv(f, tile.cols),)
        with torch.cuda.device_of(x):
            masked_up[grid](*tensors, n, d, f, chosen.shape[1], **flags, **arithmetic(x.dtype), **tile.launch())
    return hidden


def gate_many(call: GateCall, units: tuple[int, ...], gradients: bool) -> Tensor:
    """The same function as `kernels.gate_mlp` for any number of tokens; it is differentiable as it."""
    gate = F.linear(call.x, call.W_gate, call.b_gate)
    chosen = gate_choice(gate.detach(), call, units)
    if not gradients and call.k_out is None and call.x.shape[1] <= EPILOGUE_D:
        return up_where_chosen(call, gate, chosen, units) @ call.W_out
    up = F.linear(call.x, call.W_in, call.b_in)
    if call.k_out is not None:  # of single neurons, which may stand for any others
        with torch.cuda.device_of(up):
            kept, hidden = keep_neurons(up.detach(), gate.detach(), chosen.view(torch.uint8), call)
        if not gradients:
            return hidden @ call.W_out
        chosen = kept.view(torch.bool)
    return MaskedProduct.apply(gate, up, chosen, units, call.activation) @ call.W_out
