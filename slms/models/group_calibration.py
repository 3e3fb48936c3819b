"""Sets what chooses, and mean outputs, of the routed MLPs that share a router, from calibration tokens.

Shapes: n calibration tokens, d model, f neurons, p pathways.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from slms.kernels.activations import ACTIVATIONS
from slms.models.calibration import PathwayStatistics, cool, fit_router, pathway_statistics, trimmed
from slms.models.refit import refit
from slms.models.routed_mlp import RoutedMLP
from slms.models.weights import MLPWeights
from slms.routing import RULES, GateSelector, PathwayRouter, set_positive, set_threshold, target_density

logger = logging.getLogger(__name__)

_REFIT_TOKENS = 2**14
MOST_ELEMENTS = 2**25
"""Activations that a partition looks at, tokens × neurons: 128 MiB in fp32."""


class Read(NamedTuple):
    """A routed MLP that holds the dense one's weights, and what calibration tokens say of it."""

    mlp: RoutedMLP
    weights: MLPWeights
    """in pathway order, fp32"""
    x: Tensor
    """[n, d]"""
    root: Tensor | None


def calibrate(group: list[Read]) -> None:
    """Set what chooses, and mean outputs, of the MLPs that share a router, leader first; one that shares none is alone.

    The router learns the root of the sum of the squared norms that the layers' pathways of one number contribute.
    """
    mlp, weights, x, root = leader = group[0]
    config = mlp.config
    if isinstance(mlp.router, GateSelector):
        _calibrate_gate(mlp, mlp.router, weights, x, root)
    else:
        led = _statistics(leader)
        squares = led.norms.square()
        for i, one in enumerate(group[1:], 1):
            group[i], found = _aligned(one, led)
            squares += found.norms.square()
        _calibrate_router(leader, squares.sqrt() if group[1:] else led.norms)
    for one in group if config.refit else ():
        every = -(-len(x) // _REFIT_TOKENS)
        errors = refit(one.mlp, one.weights, one.x[::every], leader=(mlp, x[::every]))
        logger.info("%s: the refit lowers the relative error from %.3f to %.3f", one.mlp.place, *errors)


def _statistics(of: Read) -> PathwayStatistics:
    """Measure what the pathways of an MLP contribute, and set the means of their outputs."""
    centred = of.mlp.config.mean_compensation
    statistics = pathway_statistics(of.weights, of.x, of.mlp.offsets, centred=centred, root=of.root)
    if of.mlp.mean_out is not None:
        of.mlp.mean_out.copy_(statistics.mean)
    return statistics


def _aligned(follower: Read, led: PathwayStatistics) -> tuple[Read, PathwayStatistics]:
    """Renumber a follower's pathways so that they contribute to the tokens to which the leader's do."""
    statistics = _statistics(follower)
    order, pathways = _align(follower.mlp, led.norms, statistics.norms)
    statistics = PathwayStatistics(statistics.mean[pathways], statistics.norms[:, pathways])
    if follower.mlp.mean_out is not None:
        follower.mlp.mean_out.copy_(statistics.mean)
    return follower._replace(weights=follower.weights.in_order(order)), statistics


def _calibrate_router(leader: Read, norms: Tensor) -> None:
    """Set a router from norms [n, p] of what its pathways contribute, in one layer or all that share it."""
    mlp, weights, x, _ = leader
    config, router = mlp.config, mlp.router
    assert isinstance(router, PathwayRouter)
    if config.router_init == "norm":
        fitted = copy.deepcopy(router).float()  # it is fitted in fp32 whatever the model's dtype
        follow = config.gate == "softmax"
        target = trimmed(norms) if follow else norms
        explained = fit_router(fitted, x, target, (config.seed or 0) + mlp.layer_index)
        if follow:
            logger.info("%s: scores are multiplied by %g", mlp.place, cool(fitted, weights, mlp.offsets, x))
        router.load_state_dict(fitted.state_dict())
        logger.info("%s: the router explains %.2f of the variance of norms", mlp.place, explained)
    if held := RULES[config.rule].held:
        every = -(-len(x) * config.n_pathways // MOST_ELEMENTS)
        density, few = target_density(config, config.k), x[::every]
        if held == "threshold":
            set_threshold(router, router(few), density)
        else:
            set_positive(router, few, norms[::every], density)


def pairing(led: Tensor, norms: Tensor, sizes: Sequence[int], n_shared: int) -> Tensor:
    """Find the new index of each pathway, int64 [p], with which a follower's pathways go best with its leader's.

    led and norms [n, p] are the norms of the leader's and the follower's pathways at the same tokens. The sum of the
    correlations of paired pathways is greatest (Hungarian algorithm); a pathway pairs with one of its own size, and a
    shared one with a shared one.
    """
    p, every = len(sizes), -(-norms.numel() // MOST_ELEMENTS)
    few = (led[::every].double(), norms[::every].double())
    a, b = ((x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-12) for x in few)
    correlation = (b.T @ a / len(a)).cpu().numpy()
    kinds = np.stack([np.asarray(sizes), np.arange(p) < n_shared])
    alike = (kinds[:, :, None] == kinds[:, None]).all(0)
    _, new = linear_sum_assignment(np.where(alike, correlation, -2.0 * p), maximize=True)
    return torch.from_numpy(new)


def _align(mlp: RoutedMLP, led: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Renumber a follower's pathways in place, before its means are set, as :func:`pairing` finds.

    Returns the old row of each new row, int64 [f], and the old pathway of each new one, int64 [p].
    """
    sizes = np.diff(mlp.offsets).tolist()
    new = pairing(led, norms, sizes, mlp.config.n_shared)
    device = mlp.W_in.device
    pathway = new.repeat_interleave(torch.tensor(sizes)).to(device)
    order = mlp.regroup(pathway, torch.zeros(len(pathway), device=device))
    return order, new.argsort().to(device)


def _calibrate_gate(
    mlp: RoutedMLP, selector: GateSelector, weights: MLPWeights, x: Tensor, root: Tensor | None
) -> None:
    assert weights.W_gate is not None
    x = x[:: max(1, x.shape[0] * len(weights.W_in) // MOST_ELEMENTS)]
    gate = ACTIVATIONS[weights.activation](F.linear(x, weights.W_gate, weights.b_gate))
    massive = selector.calibrate(
        gate, F.linear(x, weights.W_in, weights.b_in), weighed(weights.W_out, root).norm(dim=1)
    )
    if selector.least is not None:
        logger.info("%s: tokens run what scores %.3g or more", mlp.place, selector.least.item())
    if massive:
        logger.info("%s: %d of %d tokens are massive; such tokens keep all neurons", mlp.place, massive, len(x))


def weighed(W_out: Tensor, root: Tensor | None) -> Tensor:
    """What neurons write, [f, d], so that its length is their importance."""
    return W_out if root is None else W_out @ root
