"""Routed MLP on the CPU that really skips: one pass over the pathways, each with the tokens that chose it.

Weights are neuron-major, so a pathway's share of every matrix is one contiguous block of rows, and blocks that no token
chose are never read. Tokens are gathered, transformed and added back one pathway at a time while they are hot in the
cache, which was 5 to 15 % faster than gathering all pairs first, and needs no memory for them. Each token's sum runs in
pathway order for any number of threads, so results are reproducible bit for bit.

Shapes: n tokens, d model, f neurons, p pathways; inside a pathway: r tokens that chose it, m neurons.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from slms.kernels.activations import ACTIVATIONS
from slms.kernels.call import Call, Gradients


class Block(NamedTuple):
    tokens: Tensor
    """[r] int64, the tokens that chose this pathway, ascending"""
    neurons: slice
    cells: slice
    """this pathway's part of the list of chosen cells"""


def chosen_cells(chosen: Tensor) -> tuple[Tensor, list[int]]:
    """The chosen entries as ascending indices into the flattened [p, n] table, and their number per pathway."""
    by_pathway = chosen.t().contiguous()
    return by_pathway.view(-1).nonzero().view(-1), by_pathway.sum(1).tolist()


def blocks(cells: Tensor, counts: list[int], n: int, offsets: Sequence[int]) -> Iterator[Block]:
    """Yield the pathways that have both tokens and neurons."""
    tokens = cells.remainder(n) if len(cells) else cells
    start = 0
    for count, (first, last) in zip(counts, pairwise(offsets), strict=True):
        end = start + count
        if count and first < last:
            yield Block(tokens[start:end], slice(first, last), slice(start, end))
        start = end


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def grouped_forward(call: Call) -> Tensor:
    """y [n, d] = Σ over chosen p of gates[:, p] · h_p W_out_p, see `kernels.routed_mlp`."""
    x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation, _ = call
    act = ACTIVATIONS[activation].value
    cells, counts = chosen_cells(chosen)
    gate = gates.t().reshape(-1).index_select(0, cells).to(x.dtype).unsqueeze(1)
    y = torch.zeros(x.shape, dtype=_sum_dtype(x.dtype))
    for tokens, f, c in blocks(cells, counts, len(x), offsets):
        x_p = x.index_select(0, tokens)
        h_p = F.linear(x_p, W_in[f], None if b_in is None else b_in[f])
        if W_gate is None:
            h_p = act(h_p)
        else:
            h_p *= act(F.linear(x_p, W_gate[f], None if b_gate is None else b_gate[f]))
        h_p *= gate[c]
        y.index_add_(0, tokens, torch.mm(h_p, W_out[f]).to(y.dtype))
    return y.to(x.dtype)


def grouped_backward(grad: Tensor, call: Call) -> Gradients:
    """The gradients of `grouped_forward`; hidden activations are recomputed instead of kept.

    With u = x W_inᵀ + b_in, v = x W_gateᵀ + b_gate, h = act(u) or act(v) ⊙ u, e = grad W_outᵀ (before the gate):
    d gate = ⟨h, e⟩, dh = gate · e, dW_out = (gate · h)ᵀ grad; du, dv from dh; dW_in = duᵀ x; dx = du W_in + dv W_gate.
    """
    x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation, _ = call
    act, act_backward = ACTIVATIONS[activation]
    wide = _sum_dtype(x.dtype)
    cells, counts = chosen_cells(chosen)
    gate = gates.t().reshape(-1).index_select(0, cells).to(x.dtype).unsqueeze(1)
    d_cells = torch.zeros(len(cells), dtype=wide)
    dx = torch.zeros(x.shape, dtype=wide)

    def zeros(like: Tensor | None) -> Tensor:
        return x.new_empty(0) if like is None else torch.zeros(like.shape, dtype=like.dtype)

    dW_in, db_in, dW_gate, db_gate, dW_out = (zeros(w) for w in (W_in, b_in, W_gate, b_gate, W_out))
    for tokens, f, c in blocks(cells, counts, len(x), offsets):
        x_p, grad_p = x.index_select(0, tokens), grad.index_select(0, tokens)
        u = F.linear(x_p, W_in[f], None if b_in is None else b_in[f])
        e = torch.mm(grad_p, W_out[f].t())
        if W_gate is None:
            h = act(u)
            d_cells[c] = (h * e).sum(1, dtype=wide)
            du, dv = act_backward(e.mul_(gate[c]), u), None
        else:
            v = F.linear(x_p, W_gate[f], None if b_gate is None else b_gate[f])
            a = act(v)
            h = a * u
            d_cells[c] = (h * e).sum(1, dtype=wide)
            e.mul_(gate[c])
            du, dv = e * a, act_backward(e * u, v)
        torch.mm(h.mul_(gate[c]).t(), grad_p, out=dW_out[f])
        torch.mm(du.t(), x_p, out=dW_in[f])
        if b_in is not None:
            torch.sum(du, 0, out=db_in[f])
        dx_p = torch.mm(du, W_in[f]).to(wide)
        if W_gate is not None and dv is not None:
            torch.mm(dv.t(), x_p, out=dW_gate[f])
            dx_p += torch.mm(dv, W_gate[f])
            if b_gate is not None:
                torch.sum(dv, 0, out=db_gate[f])
        dx.index_add_(0, tokens, dx_p)
    d_gates = torch.zeros(chosen.numel(), dtype=gates.dtype).index_copy_(0, cells, d_cells.to(gates.dtype))
    d_gates = d_gates.view(chosen.shape[1], chosen.shape[0]).t().contiguous()
    return Gradients(dx.to(x.dtype), dW_in, db_in, dW_gate, db_gate, dW_out, d_gates)
