"""Gated MLPs whose neurons are chosen by their own gates: the inputs, and the specification in plain PyTorch.

The gate matrix runs whole; up and down run only where chosen, which costs (1 + 2ρ)/3 of the dense MLP at density ρ. A
second choice, by the activations themselves, may leave fewer for down: (1 + ρ + ρ_out)/3.

Shapes: n tokens, d model, f neurons, p units.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from slms.kernels.activations import ACTIVATIONS


class GateCall(NamedTuple):
    """The inputs of `kernels.gate_mlp`. The first six have gradients; the choice has none."""

    x: Tensor
    """[n, d]"""
    W_in: Tensor
    """[f, d]"""
    b_in: Tensor | None
    """[f]"""
    W_gate: Tensor
    """[f, d]"""
    b_gate: Tensor | None
    """[f]"""
    W_out: Tensor
    """[f, d]"""
    scale: Tensor
    """[f] fp32, at least 0: what one unit of |act(gate)| is worth, E|up_i| · ‖w_out_i‖"""
    offsets: Sequence[int]
    """p + 1 ints: unit i owns neurons offsets[i] to offsets[i + 1]; single neurons are units of one"""
    k: int
    """units per token, shared ones included"""
    n_shared: int
    """units 0 to n_shared - 1 run for every token"""
    activation: str
    """a key of `kernels.ACTIVATIONS`"""
    whole_above: Tensor | None = None
    """[] fp32: a token keeps every unit if the 2-norm of its units' scores exceeds it"""
    k_out: int | None = None
    """neurons of the chosen ones, which must be units of one, that go through W_out; None: all"""
    out_scale: Tensor | None = None
    """[f] fp32, at least 0: what one unit of a neuron's activation is worth to that second choice, ‖w_out_i‖"""
    least: Tensor | None = None
    """[] fp32: units whose score is at least this are chosen, and `k` is only their usual number"""
    least_out: Tensor | None = None
    """[] fp32, with `least` and `k_out`: neurons with |h| · `out_scale` of at least this go through W_out"""


def unit_scores(gate: Tensor, scale: Tensor, offsets: Sequence[int]) -> Tensor:
    """Scores [n, p] of units: the 2-norm of c = |gate| · scale over each unit's neurons; gate [n, f] is activated.

    They are float32, or float64 if the gate is.

    >>> unit_scores(torch.tensor([[3.0, -4.0, 2.0]]), torch.ones(3), (0, 2, 3))
    tensor([[5., 2.]])
    """
    wide = torch.promote_types(gate.dtype, torch.float32)
    c = gate.detach().to(wide).abs() * scale.detach()
    sizes = [end - start for start, end in pairwise(offsets)]
    if set(sizes) == {1}:
        return c
    return torch.stack([unit.square().sum(1).sqrt() for unit in c.split(sizes, 1)], 1)


def select_reference(scores: Tensor, k: int, n_shared: int, whole_above: Tensor | None = None) -> Tensor:
    """Choose [n, p] bool: the shared units and the k − n_shared largest of the others; else as in `GateCall`.

    Of equal scores the left one is chosen; NaN counts as largest.
    """
    order = scores[:, n_shared:].sort(dim=1, descending=True, stable=True).indices[:, : k - n_shared]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order + n_shared, True)
    chosen[:, :n_shared] = True
    return chosen if whole_above is None else chosen | (scores.norm(dim=1, keepdim=True) > whole_above)


def choose_reference(scores: Tensor, call: GateCall) -> Tensor:
    """Choose [n, p] bool by scores [n, p]: the best `k`, or with `least` those that reach it, as NaN does."""
    if call.least is None:
        return select_reference(scores, call.k, call.n_shared, call.whole_above)
    chosen = ~(scores < call.least)
    chosen[:, : call.n_shared] = True
    return chosen if call.whole_above is None else chosen | (scores.norm(dim=1, keepdim=True) > call.whole_above)


def keep_reference(h: Tensor, chosen: Tensor, call: GateCall) -> Tensor:
    """Of the chosen neurons [n, f] those that go through W_out: the `k_out` of largest |h| · `out_scale`, h [n, f].

    Or, with `least_out`, those that reach it. A token that chose all, though `k` are fewer, keeps all; of equals the
    left one stays.
    """
    if call.k_out is None:
        return chosen
    assert call.out_scale is not None  # the call has been checked
    wide = torch.promote_types(h.dtype, torch.float32)
    worth = h.detach().to(wide).abs() * call.out_scale
    whole = chosen.all(1, keepdim=True) & (call.k < chosen.shape[1])
    if call.least_out is not None:
        return chosen & (~(worth < call.least_out) | whole)
    worth = worth.masked_fill(~chosen, -1.0)
    return chosen & (select_reference(worth, call.k_out, 0) | whole)


def per_neuron(chosen: Tensor, offsets: Sequence[int]) -> Tensor:
    """Each unit's choice repeated over its neurons: [n, p] -> [n, f]."""
    if len(offsets) - 1 == offsets[-1] and all(end - start == 1 for start, end in pairwise(offsets)):
        return chosen
    sizes = torch.tensor([end - start for start, end in pairwise(offsets)], device=chosen.device)
    return chosen.repeat_interleave(sizes, dim=1, output_size=offsets[-1])


def gate_activations(call: GateCall) -> Tensor:
    """act(x W_gateᵀ + b_gate) [n, f]"""
    return ACTIVATIONS[call.activation](F.linear(call.x, call.W_gate, call.b_gate))


def gate_mlp_reference(call: GateCall) -> Tensor:
    """y [n, d] = Σ over kept neurons i of act(g_i) · u_i · W_out[i], g and u the two projections of x.

    Kept are the neurons of the chosen units, or those of them that `keep_reference` leaves. It executes dense FLOPs.
    """
    gate = gate_activations(call)
    scores = unit_scores(gate, call.scale, call.offsets)
    chosen = per_neuron(choose_reference(scores, call), call.offsets)
    h = gate * F.linear(call.x, call.W_in, call.b_in)
    return torch.where(keep_reference(h, chosen, call), h, 0) @ call.W_out
