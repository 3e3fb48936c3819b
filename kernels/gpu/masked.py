"""Many small pathways for many tokens: PyTorch's products of all rows, and one pass between them.

Tokens choose apart, so many of them need all rows, and groups of a few neurons would move more than they save. The pass
applies activation, choice and gates; in the backward pass it forms the gradients of all three.

Shapes: n tokens, d model, f neurons, p pathways.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from slms.kernels.call import Gradients
from slms.kernels.gpu.pieces import activate, narrow, slope
from slms.kernels.gpu.problem import Problem
from slms.kernels.gpu.tiles import upcast, weigh_sizes


@triton.jit
def neurons(offsets, p, U, SINGLE: tl.constexpr, ALIGNED: tl.constexpr):
    """The first neuron of pathways p and a bound on them: the one after the last, or if each is SINGLE, that of all."""
    if SINGLE:
        first, end = p, tl.zeros_like(p) + U  # not p + 1, for a mask that differs for each neuron is loaded one by one
    else:
        first = tl.load(offsets + p, mask=p < U, other=0)
        end = tl.load(offsets + p + 1, mask=p < U, other=0)
        if ALIGNED:  # see `kernels.gpu.pieces.span`
            first, end = tl.multiple_of(first, 16), tl.multiple_of(end, 16)
    return first, end


@triton.jit
def weigh(
    up,
    gate,
    gates,
    chosen,
    offsets,
    hidden,
    f,
    U,
    LONGEST,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    SINGLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    UPCAST: tl.constexpr,
    UNITS: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    """hidden = gates[t, p] · act(up) where t chose the neuron's pathway p, else 0; act(gate) · up when GATED."""
    t = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    c = tl.load(chosen + t * U + p, mask=p < U, other=0) != 0
    weight = tl.load(gates + t * U + p, mask=c, other=0.0).to(tl.float32)[:, None]
    first, end = neurons(offsets, p, U, SINGLE, ALIGNED)
    for k in range(0, LONGEST, MEMBERS):
        i = first[:, None] + k + tl.arange(0, MEMBERS)[None, :]
        mine = i < end[:, None]
        h = tl.load(up + t * f + i, mask=mine, other=0.0).to(tl.float32)
        if GATED:
            h *= activate(tl.load(gate + t * f + i, mask=mine, other=0.0).to(tl.float32), ACT)
        else:
            h = activate(h, ACT)
        h = tl.where(c[:, None], h * weight, 0.0)
        tl.store(hidden + t * f + i, narrow(h, hidden.dtype.element_ty, UPCAST), mask=mine)


@triton.jit
def weigh_gradients(
    grad,
    up,
    gate,
    gates,
    chosen,
    offsets,
    hidden,
    du,
    dv,
    d_gates,
    f,
    U,
    LONGEST,
    ACT: tl.constexpr,
    GATED: tl.constexpr,
    SINGLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    UPCAST: tl.constexpr,
    UNITS: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    """With e = grad and weight g where chosen, else 0: hidden = g h, d_gates = Σ over the pathway's neurons of h e,

    du = g e act'(up); when GATED du = g e act(gate), dv = g e up act'(gate).
    """
    t = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    c = tl.load(chosen + t * U + p, mask=p < U, other=0) != 0
    weight = tl.load(gates + t * U + p, mask=c, other=0.0).to(tl.float32)[:, None]
    first, end = neurons(offsets, p, U, SINGLE, ALIGNED)
    sums = tl.zeros((UNITS, MEMBERS), tl.float32)
    for k in range(0, LONGEST, MEMBERS):
        i = first[:, None] + k + tl.arange(0, MEMBERS)[None, :]
        mine = i < end[:, None]
        u = tl.load(up + t * f + i, mask=mine, other=0.0).to(tl.float32)
        e = tl.load(grad + t * f + i, mask=mine, other=0.0).to(tl.float32)
        if GATED:
            v = tl.load(gate + t * f + i, mask=mine, other=0.0).to(tl.float32)
            a = activate(v, ACT)
            h = a * u
            changed = tl.where(c[:, None], weight * e * a, 0.0)
            d = tl.where(c[:, None], weight * e * u * slope(v, ACT), 0.0)
            tl.store(dv + t * f + i, narrow(d, dv.dtype.element_ty, UPCAST), mask=mine)
        else:
            h = activate(u, ACT)
            changed = tl.where(c[:, None], weight * e * slope(u, ACT), 0.0)
        sums += tl.where(mine & c[:, None], h * e, 0.0)
        h = tl.where(c[:, None], h * weight, 0.0)
        tl.store(du + t * f + i, narrow(changed, du.dtype.element_ty, UPCAST), mask=mine)
        tl.store(hidden + t * f + i, narrow(h, hidden.dtype.element_ty, UPCAST), mask=mine)
    tl.store(d_gates + t * U + p, tl.sum(sums, 1), mask=p < U)


def _products(call: Problem) -> tuple[Tensor, Tensor]:
    """What goes into the activation [n, f]: up, and the gate if there is one, else up again."""
    up = F.linear(call.x, call.W_in, call.b_in)
    return up, up if call.W_gate is None else F.linear(call.x, call.W_gate, call.b_gate)


def _sizes(call: Problem) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]:
    """The grid, f, P and the longest pathway, and the constants of a pass."""
    (n, p), f, single = call.chosen.shape, len(call.W_in), call.single
    constants = {name: call.constants[name] for name in ("ACT", "GATED", "ALIGNED")}
    sizes = weigh_sizes(call.m)
    constants |= {"SINGLE": single, "UPCAST": upcast(call.x.dtype), **sizes}
    return (n, triton.cdiv(p, sizes["UNITS"])), (f, p, call.m), constants


def masked_forward(call: Problem) -> Tensor:
    """`kernels.routed_mlp` for any number of tokens."""
    up, gate = _products(call)
    grid, sizes, constants = _sizes(call)
    hidden = torch.empty_like(up)
    cells = call.chosen.view(torch.uint8)
    weigh[grid](up, gate, call.gates, cells, call.offsets, hidden, *sizes, **constants)
    return hidden @ call.W_out


def masked_backward(grad: Tensor, call: Problem) -> Gradients:
    """The gradients of `masked_forward`, whose activations are computed again; empty tensors for absent inputs."""
    up, gate = _products(call)
    grid, sizes, constants = _sizes(call)
    hidden, du, dv = (grad.new_empty(up.shape if needed else 0) for needed in (1, 1, call.W_gate is not None))
    d_gates = grad.new_empty(call.chosen.shape, dtype=torch.float32)
    tensors = (grad @ call.W_out.T, up, gate, call.gates, call.chosen.view(torch.uint8), call.offsets)
    weigh_gradients[grid](*tensors, hidden, du, dv, d_gates, *sizes, **constants)
    dx, dW_gate = du @ call.W_in, grad.new_empty(0)
    if call.W_gate is not None:
        dx, dW_gate = torch.addmm(dx, dv, call.W_gate), dv.T @ call.x
    db_in, db_gate = (grad.new_empty(0) if b is None else d.sum(0) for b, d in ((call.b_in, du), (call.b_gate, dv)))
    return Gradients(dx, du.T @ call.x, db_in, dW_gate, db_gate, hidden.T @ grad, d_gates.to(call.gates.dtype))
