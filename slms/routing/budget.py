"""Holds the mean number of pathways that a token executes to `routing.k`, for rules whose k follows the token.

The rule ``controlled`` chooses every pathway whose score exceeds the mean of the token's scores by a threshold, so k is
large where many pathways contribute and small where a few do. Calibration sets the threshold so that the density (the
share of routed pathways that run, shared ones left out) is (k − n_shared) / (P − n_shared) at once; a `Budget` keeps it
there in training.

The rule ``relu`` chooses positive scores, which are also the gates: calibration shifts and scales them, and training
holds the density by a penalty on them. A token without a positive score executes nothing but shared pathways: its
output is theirs, b_out and the stored means, whichever there are.

Shapes: n tokens, p pathways.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slms.routing.config import RoutingConfig
from slms.routing.router import PathwayRouter
from slms.routing.rules import RULES, Routes, centred

if TYPE_CHECKING:
    from slms.routing.gate import GateSelector

PROPORTIONAL, INTEGRAL = 0.5, 0.2
"""How far the controller moves the threshold for an error of the density, in spreads of the calibration scores. Normal
scores at a density of a third have a slope of .37 there, so that a lasting error decays by 7 % a step (docs/log.md)."""
GATE_INTEGRAL = 0.1
"""How far the logarithm of a gate's threshold moves for a relative error of the density. A density near a third changes
by about 1.2 % for 1 % of the threshold (SmolLM2-135M), so that a lasting error decays by 12 % a step (docs/log.md)."""
LEAST = torch.finfo(torch.float32).tiny
"""The lowest threshold of gates: what scores 0 adds nothing, and 0 times anything would stay 0."""
LOG_PROPORTIONAL, LOG_INTEGRAL = 5.0, 0.05
"""How far the logarithm of the penalty's weight moves for a relative error of the density. ReMoE multiplies the weight
by 1.2 or 1/1.2; routers follow it so late that the density falls to half and stays there (docs/log.md)."""
FIRST_WEIGHT, WEIGHTS = 1e-2, (1e-8, 1e2)
"""The weight at first and within which bounds it stays. ReMoE starts at 1e-8 from all pathways; a conversion has the
density at once, which the loss would leave for a hundred steps before such a weight counted."""


def target_density(config: RoutingConfig, k: int) -> float:
    """The share of the routed pathways, shared ones left out, that a token executes on average.

    >>> target_density(RoutingConfig(n_pathways=16, k=4, n_shared=1), 4)
    0.2
    """
    return (k - config.n_shared) / (config.n_pathways - config.n_shared)


def score_at_density(scores: Tensor, density: float) -> Tensor:
    """The score, a scalar, that the share `density` of all scores reach.

    >>> score_at_density(torch.tensor([[4.0, 1.0], [3.0, 2.0]]), 0.5)
    tensor(3.)
    """
    flat = scores.flatten()
    kept = min(max(round(density * len(flat)), 1), len(flat))
    return flat.kthvalue(len(flat) - kept + 1).values


@torch.no_grad()
def set_threshold(router: PathwayRouter, scores: Tensor, density: float) -> None:
    """Give a router the threshold at which its scores [n, p] choose the share `density` of the routed pathways."""
    routed = centred(scores[:, router.config.n_shared :])
    router.keep_threshold()
    assert router.threshold is not None and router.spread is not None
    router.threshold.copy_(score_at_density(routed, density))
    router.spread.copy_(routed.std())


@torch.no_grad()
def set_positive(router: PathwayRouter, x: Tensor, norms: Tensor, density: float) -> None:
    """Make the share `density` of a router's scores of inputs x [n, d] positive: those farthest above a token's mean.

    Scores become c · (s − mean s − θ). θ sets the density, and c = Σ w r / Σ w r², with r the positive scores and w the
    squared norms [n, p] of the pathways' outputs, brings c · r as near as possible to 1, the gate of the dense model.
    """
    shared, out = router.config.n_shared, router.out
    assert out.bias is not None  # the configuration sees to it
    out.weight[shared:].sub_(out.weight[shared:].mean(0))
    out.bias[shared:].sub_(out.bias[shared:].mean())
    out.bias.sub_(score_at_density(router(x)[:, shared:], density))
    r, w = router(x)[:, shared:].relu(), norms[:, shared:].square()
    scale = (w * r).sum() / (w * r.square()).sum().clamp_min(torch.finfo(r.dtype).tiny)
    out.weight.mul_(scale)
    out.bias.mul_(scale)


class Budget(nn.Module):
    """Measures the density of one place over a global batch, and corrects it after each optimizer step.

    The choices of all micro-batches and ranks are summed, so that 1 or 4 of them hold the same density. Call the module
    with each micro-batch's routes, and :meth:`step` once after each optimizer step. In eval mode it counts nothing.
    """

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        # int64 survives module.to(bfloat16)
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))

    def count(self, routes: Routes, n_shared: int) -> None:
        """Add routes [n, p] to the counts of choices and of possible choices."""
        if self.training:
            chosen = routes.chosen[:, n_shared:]
            self.counts += torch.stack([chosen.sum(), chosen.new_full((), chosen.numel(), dtype=torch.int64)])

    def error(self, router: PathwayRouter, k: int) -> Tensor | None:
        """Return the density of the ended step minus the target, over all ranks; None if nothing was counted."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts)
        chosen, possible = self.counts.tolist()
        self.counts.zero_()
        if not possible:
            return None
        return self.counts.new_full((), chosen / possible - target_density(router.config, k), dtype=torch.float32)


class ThresholdControl(Budget):
    """Moves a router's threshold by a proportional–integral controller (DTop-p, arXiv:2512.13996).

    With the errors e_t of the density and the spread σ of the calibration scores, after step t the threshold is
    θ_0 + σ · (PROPORTIONAL · e_t + INTEGRAL · Σ_s≤t e_s). DTop-p controls the share of probability that the rule
    ``top_p`` keeps; ``controlled`` controls the least centred score, which docs/log.md compares.
    """

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(()))

    def forward(self, routes: Routes, config: RoutingConfig) -> Tensor | None:
        """Count routes [n, p]; there is no penalty."""
        self.count(routes, config.n_shared)
        return None

    @torch.no_grad()
    def step(self, router: PathwayRouter, k: int) -> None:
        """Correct the threshold. Every rank must call it."""
        error = self.error(router, k)
        if error is not None:
            assert router.threshold is not None and router.spread is not None
            router.threshold += router.spread * (PROPORTIONAL * (error - self.last) + INTEGRAL * error)
            self.last.copy_(error)


class AdaptiveL1(Budget):
    """Penalises positive scores, the more the longer the density is too high (ReMoE, arXiv:2412.14711, eq. 9).

    The penalty is λ · the mean of relu(s) over tokens and routed pathways. With the relative errors ε_t of the density,
    after step t λ is FIRST_WEIGHT · exp(LOG_PROPORTIONAL · ε_t + LOG_INTEGRAL · Σ_s≤t ε_s), within `WEIGHTS`.
    """

    weight: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.full((), FIRST_WEIGHT))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, routes: Routes, config: RoutingConfig) -> Tensor:
        """Count routes [n, p] and return the penalty, a scalar."""
        self.count(routes, config.n_shared)
        return self.weight * routes.scores[:, config.n_shared :].relu().mean()

    @torch.no_grad()
    def step(self, router: PathwayRouter, k: int) -> None:
        """Correct λ. Every rank must call it."""
        error = self.error(router, k)
        if error is not None:
            error = error / target_density(router.config, k)
            self.weight.mul_(torch.exp(LOG_PROPORTIONAL * (error - self.last) + LOG_INTEGRAL * error)).clamp_(*WEIGHTS)
            self.last.copy_(error)


class GateControl(nn.Module):
    """Moves the thresholds of a `GateSelector`, which counts what its tokens choose, by an integral controller.

    Each step multiplies a threshold by exp(GATE_INTEGRAL · (density / target − 1)).
    """

    @torch.no_grad()
    def step(self, selector: GateSelector, k: int) -> None:
        """Correct the thresholds and forget the counts. Every rank must call it."""
        counts, selector.counts = selector.counts, None
        if counts is None:
            return
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        chosen, kept, possible = counts.tolist()
        p, k_out = selector.config.n_pathways, selector.config.k_out_at(k)
        for least, ran, wanted in ((selector.least, chosen, k), (selector.least_out, kept, k_out)):
            if least is not None and wanted and possible:
                error = ran / possible / (wanted / p) - 1
                least.mul_(math.exp(GATE_INTEGRAL * error)).clamp_(min=LEAST)


BUDGETS: dict[str, type[ThresholdControl | AdaptiveL1]] = {"threshold": ThresholdControl, "penalty": AdaptiveL1}
"""How a rule is held (`Rule.held`) → what holds it."""


def budget_of(config: RoutingConfig) -> ThresholdControl | AdaptiveL1 | GateControl | None:
    """What holds the density of a place that is routed by this configuration; None if its rule needs nothing."""
    held = RULES[config.rule].held
    if held is None or math.isclose(target_density(config, config.k), 1.0):
        return None
    return GateControl() if config.router == "gate" else BUDGETS[held]()
