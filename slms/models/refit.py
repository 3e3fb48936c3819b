"""Refits a routed MLP's down-projection to what its tokens choose, by least squares.

A neuron that runs can make up for those that are skipped at the same tokens. With h the neurons, weighed by the gates
of the pathways that a token chooses and zero elsewhere, and y what the dense MLP gives,

    W_out′ = W_out + argmin_Δ Σ_t ‖y − h W_out − h Δ‖² / ‖y‖² + ridge ‖Δ‖².

The static control has its down-projection refitted too (:mod:`slms.models.pruning`). If every pathway is chosen, with
gates of 1, Δ is 0.

Shapes: n calibration tokens, d model, f neurons.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slms.models.routed_mlp import RoutedMLP
from slms.models.weights import MLPWeights, neurons

RIDGE = 3.0
"""As a share of the mean second moment of the chosen neurons. Below it, texts unlike the calibration tokens lose more
than its own gain (docs/log.md)."""
_CHUNK = 2048
_MOST_WEIGHT = 4.0
"""of a token, over the median; tokens with tiny outputs would otherwise decide"""


@torch.no_grad()
def refit(
    mlp: RoutedMLP,
    weights: MLPWeights,
    x: Tensor,
    ridge: float = RIDGE,
    leader: tuple[RoutedMLP, Tensor] | None = None,
) -> tuple[float, float]:
    """Refit ``mlp.W_out`` to its choices at inputs x [n, d]; return the mean relative error before and after.

    weights: the dense MLP's, in pathway order and fp32, from which the routed one was filled. leader: the MLP whose
    choices it executes, and its inputs [n, d] of the same tokens, if they are not its own. The error is of those
    tokens, ‖y − y′‖ / ‖y‖ as a root mean square, in which a token weighs at most 4 times as much as the median one.
    """
    f, d = weights.W_out.shape
    moment = x.new_zeros(f, f, dtype=torch.float64)
    towards, squares = x.new_zeros(f, d, dtype=torch.float64), x.new_zeros((), dtype=torch.float64)
    chooser, read = leader or (mlp, x)
    for chunk, seen in zip(x.split(_CHUNK), read.split(_CHUNK), strict=True):
        h = neurons(weights, chunk)
        y = h @ weights.W_out
        routes = chooser.routes(seen.to(mlp.W_in.dtype))
        h = mlp.weigh(h, routes)
        left = y - h @ weights.W_out
        if mlp.mean_out is not None:
            left -= (~routes.chosen).float() @ mlp.mean_out.float()
        scale = 1 / y.norm(dim=1, keepdim=True).clamp_min(1e-12)
        scale.clamp_(max=_MOST_WEIGHT * scale.median())
        h, left = (h * scale).double(), (left * scale).double()
        moment.addmm_(h.T, h)
        towards.addmm_(h.T, left)
        squares += left.square().sum()
    mean = moment.diagonal().mean().clamp_min(1e-30)
    change = torch.linalg.solve(moment + ridge * mean * torch.eye(f, dtype=moment.dtype, device=x.device), towards)
    gained = 2 * (change * towards).sum() - (change * (moment @ change)).sum()
    mlp.W_out.add_(change.to(mlp.W_out.dtype))
    return (squares / len(x)).sqrt().item(), ((squares - gained).clamp_min(0) / len(x)).sqrt().item()
