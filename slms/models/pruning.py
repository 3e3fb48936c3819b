"""Finds the neurons of an MLP that are worth keeping, and refits its down-projection to them by least squares.

An MLP's output h W_out + b_out loses least, over calibration tokens, if the down-projection of the kept neurons S also
predicts what the dropped ones, D, gave: with C = Cov(h),

    W_out′_S = W_out_S + C_SS⁻¹ C_SD W_out_D,    b_out′ = b_out + E h W_out − E h_S W_out′_S.

What is then lost, tr W_out_Dᵀ (C_DD − C_DS C_SS⁻¹ C_SD) W_out_D, decides which neurons to drop. They are dropped one
by one, each time the one that adds least to it: ‖w_j‖² / [C⁻¹]_jj with the refitted w_j (the surgeon of Hassibi &
Stork, 1993, for all outputs at once, whose inverse is updated by rank 1).

Shapes: n calibration tokens, d model, f neurons, w kept neurons.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from slms.models.weights import MLPWeights, neurons

RIDGE = 1e-6
"""Added to the diagonal of C, as a share of its mean: it pulls the refitted weights towards the given ones."""
REFIT_RIDGE = 0.1
"""The same in the refit. On SmolLM2-135M a weaker one loses more on held-out text and much more on other texts, and on
`stories-1m` both lose the same (docs/log.md)."""
_CHUNK = 4096


class Moments(NamedTuple):
    """Moments of an MLP's neurons over calibration tokens, float64."""

    mean: Tensor
    """[f]"""
    covariance: Tensor
    """[f, f]"""


def neuron_moments(weights: MLPWeights, x: Tensor) -> Moments:
    """Compute the moments of the neurons at inputs x [n, d], in float64 and around the first tokens' mean."""
    f = len(weights.W_in)
    first, second = x.new_zeros(f, dtype=torch.float64), x.new_zeros(f, f, dtype=torch.float64)
    origin: Tensor | None = None
    for chunk in x.split(_CHUNK):
        h = neurons(weights, chunk).double()
        origin = h.mean(0) if origin is None else origin
        h -= origin
        first += h.sum(0)
        second.addmm_(h.T, h)
    assert origin is not None, x.shape
    first /= len(x)
    return Moments(first + origin, second / len(x) - torch.outer(first, first))


def worth_keeping(covariance: Tensor, W_out: Tensor, width: int, ridge: float = RIDGE) -> Tensor:
    """Return the indices [w] of the neurons to keep, ascending, dropping one neuron at a time.

    covariance: [f, f] float64; W_out: [f, d]. Each of the f − w steps costs f² + f d multiplications.
    """
    f, W = len(covariance), W_out.double().clone()
    inverse = torch.linalg.inv(_ridged(covariance, ridge))
    dropped = torch.zeros(f, dtype=torch.bool, device=W.device)
    for _ in range(f - width):
        loss = torch.where(dropped, torch.inf, W.square().sum(1) / inverse.diagonal())
        j = int(loss.argmin())
        dropped[j] = True
        step = inverse[:, j] / inverse[j, j]
        W.addr_(step, W[j].clone(), alpha=-1.0)
        inverse.addr_(step, inverse[j].clone(), alpha=-1.0)
        inverse[j, j] = 1.0  # its row and column are 0 now; the next divisions need a number
    return (~dropped).nonzero()[:, 0]


def refitted(weights: MLPWeights, moments: Moments, kept: Tensor, ridge: float = REFIT_RIDGE) -> MLPWeights:
    """Return the MLP of the kept neurons [w] alone, with W_out and b_out refitted; it always has a b_out."""
    left = torch.ones(len(weights.W_in), dtype=torch.bool, device=kept.device)
    left[kept] = False
    gone, W, mean = left.nonzero()[:, 0], weights.W_out.double(), moments.mean
    C = _ridged(moments.covariance, ridge)
    W_kept = W[kept] + torch.linalg.solve(C[kept][:, kept], C[kept][:, gone] @ W[gone])
    b_out = mean @ W - mean[kept] @ W_kept
    b_out = b_out if weights.b_out is None else b_out + weights.b_out.double()
    rows: dict[str, Any] = {name: getattr(weights, name) for name in ("W_in", "b_in", "W_gate", "b_gate")}
    rows = {name: None if w is None else w[kept] for name, w in rows.items()}
    return weights._replace(**rows, W_out=W_kept.to(weights.W_out), b_out=b_out.to(weights.W_out))


def _ridged(covariance: Tensor, ridge: float) -> Tensor:
    scale = covariance.diagonal().mean().clamp_min(1e-30)
    return covariance + ridge * scale * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
