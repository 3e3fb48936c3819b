"""Learns which pathway each neuron belongs to, given how the pathways of a token will be chosen.

Shapes: n calibration tokens, d model, f neurons, p pathways.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slms.models.clustering import balanced_assignment

_ROUNDS = 30
_TEMPERATURES = (1.0, 0.02)
"""First and last temperature, in standard deviations of a neuron's gains."""
_SWEEPS = 10
_TOKENS = 2048
"""Tokens that annealing looks at; four times as many change nothing (docs/log.md)."""
_CLIPPED = 0.9999
_RIDGE = 0.1
"""Of standardised inputs; 1e-4, the penalty of a router itself, makes worse assignments (docs/log.md)."""
_LEAST = 1e-4
"""Rise of the captured energy's share below which the ascent ends."""


class Contributions(NamedTuple):
    """What neurons contribute to tokens, and what a linear router knows of it."""

    energy: Tensor
    """[n, f]: c², c = |a_i|·‖w_out_i‖ / ‖a W_out‖, clipped at its 99.99th percentile"""
    predicted: Tensor
    """[n, f]: the linear regression of c on the MLP's input"""


def contributions(x: Tensor, acts: Tensor, W_out: Tensor) -> Contributions:
    """Measure neurons' contributions to the output, relative to its norm, and predict them from x [n, d].

    acts [n, f] are the inputs of the down-projection, or what is lost of them when a neuron is skipped.
    """
    c = acts.abs() * W_out.norm(dim=1)
    c /= (acts @ W_out).norm(dim=1, keepdim=True).clamp_min(1e-12)
    sample = c.flatten()[:: -(-c.numel() // 2**20)]
    c.clamp_max_(sample.quantile(_CLIPPED))
    z = (x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-6)
    mean = c.mean(0)
    moment = (z.T @ z / len(z)).double()
    moment.diagonal().add_(_RIDGE)
    weight = torch.linalg.solve(moment, (z.T @ (c - mean) / len(z)).double())
    return Contributions(c.square(), z @ weight.to(z.dtype) + mean)


def learned_assignment(of: Contributions, sizes: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Find labels [f] whose pathways hold most energy if each token executes the k of greatest predicted contribution.

    A pathway's predicted contribution is the sum of its neurons', as regression is linear. The share of energy that a
    choice captures is linear in the assignment, so that an optimal balanced assignment improves it; then the router
    chooses anew. These two steps alternate while the share rises (Lloyd's iteration).

    The start is annealed (Rose 1998): neurons belong to all pathways by shares whose sums are the sizes, the Sinkhorn
    projection of exp(gain / T), while T falls. Such balanced soft assignments are DOT-MoE's (arXiv:2606.01666), which
    descends on them by straight-through gradients. Labels have exactly sizes[p] neurons of pathway p.
    """
    n_neurons, n_pathways = of.energy.shape[1], len(sizes)
    if k == n_pathways:  # nothing is chosen, so that the assignment could not matter
        k = max(1, n_pathways // 2)
    few = Contributions(*(part[:: -(-len(part) // _TOKENS)].contiguous() for part in of))
    shares = torch.from_numpy(1.0 + 0.1 * rng.random((n_neurons, n_pathways))).float()
    shares /= shares.sum(1, keepdim=True)
    prices = torch.ones(n_pathways, dtype=torch.float64)
    for temperature in np.geomspace(*_TEMPERATURES, _ROUNDS):
        gain = _gain(few, _choose(few.predicted @ shares, k))
        gain -= gain.mean(1, keepdim=True)
        gain /= gain.std(1, correction=0, keepdim=True).clamp_min(1e-12)
        shares, prices = _sinkhorn(gain / temperature, torch.from_numpy(sizes), prices)

    gain = _gain(of, _choose(of.predicted @ shares, k))
    total, best, best_share, duals = of.energy.sum().clamp_min(1e-30), np.zeros(0), -1.0, None
    while True:
        labels, duals = balanced_assignment(gain.double().numpy(), sizes, duals)
        owner = torch.from_numpy(labels)[:, None]
        gain = _gain(of, _choose(of.predicted @ torch.eye(n_pathways)[owner[:, 0]], k))
        rise = (gain.gather(1, owner).sum() / total).item() - best_share
        if rise > 0:
            best, best_share = labels, best_share + rise
        if not rise >= _LEAST:  # or NaN
            return best


def _choose(scores: Tensor, k: int) -> Tensor:
    return torch.zeros_like(scores).scatter_(1, scores.topk(k, dim=1).indices, 1.0)


def _gain(of: Contributions, chosen: Tensor) -> Tensor:
    """Return the energy [f, p] that is captured if a neuron is in a pathway and the choice stays."""
    return of.energy.T @ chosen


def _sinkhorn(logits: Tensor, sizes: Tensor, prices: Tensor) -> tuple[Tensor, Tensor]:
    """Scale exp(logits) [f, p] to rows of sum 1 and columns of sum sizes [p]; prices [p] are the columns' factors."""
    kernel = (logits - logits.amax(1, keepdim=True)).double().exp()
    for _ in range(_SWEEPS):
        prices = (sizes / (kernel.T @ (kernel @ prices).reciprocal())).clamp(1e-100, 1e100)
    shares = kernel * prices
    return (shares / shares.sum(1, keepdim=True)).float(), prices
