"""The selector `gate`, which scores the units of a gated MLP by the MLP's own gate activations.

Shapes: n tokens, f neurons, p units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from slms.kernels.gate_reference import unit_scores
from slms.kernels.router import top_k
from slms.routing.budget import LEAST, score_at_density, target_density
from slms.routing.config import RoutingConfig
from slms.routing.rules import Routes, gated

MASSIVE = 8.0
"""A token whose gates weigh this many times the calibration tokens' median is massive; docs/log.md says why."""


class GateSelector(nn.Module):
    """Chooses units by c_i = |act(gate_i)| · scale_i, neuron i's expected contribution to the output given its gate.

    scale_i = rms(up_i) · ‖w_out_i‖ on calibration tokens, ‖w_out_i R‖ under the importance ``loss``
    (:mod:`slms.models.sensitivity`), ‖w_out_i‖ alone without tokens. A unit's score is the 2-norm of
    c over its neurons. The gate matrix runs whole; the other two run where chosen. The choice has no gradient; the
    weights of what is chosen have theirs. A token for which ‖c‖ exceeds ``whole_above``, one with massive activations
    (arXiv:2402.17762), keeps every unit; calibration sets it where it finds such tokens.

    With `routing.k_out` a second choice follows, by |act(gate_i) · up_i| · out_scale_i: what goes through W_out.
    out_scale_i is ‖w_out_i‖, or ‖w_out_i R‖.

    Under the rule ``controlled`` both choices are by thresholds, ``least`` and ``least_out``, which calibration and
    then training (:class:`slms.routing.budget.GateControl`) set such that k and k_out are means over tokens.
    """

    scale: Tensor
    out_scale: Tensor | None
    least: Tensor | None
    least_out: Tensor | None
    whole_above: Tensor
    ramp = blend = None  # it has no graded gates

    def __init__(self, offsets: Sequence[int], config: RoutingConfig) -> None:
        super().__init__()
        self.config, self.offsets = config, tuple(offsets)
        self.gate = "unit"
        self.chooser: Callable[[Tensor, Routes], Tensor] | None = None
        self.register_buffer("scale", torch.ones(offsets[-1]))
        self.register_buffer("out_scale", None if config.k_out is None else torch.ones(offsets[-1]))
        held = config.rule == "controlled"
        self.register_buffer("least", torch.zeros(()) if held else None)
        self.register_buffer("least_out", torch.zeros(()) if held and config.k_out is not None else None)
        self.counts: Tensor | None = None
        self.register_buffer("whole_above", torch.full((), math.inf))

    @torch.no_grad()
    def calibrate(self, activated: Tensor, up: Tensor, out_norm: Tensor) -> int:
        """Set what it chooses by from gate and up activations [n, f] and ‖w_out‖ [f]; count massive tokens."""
        self.scale.copy_(up.float().square().mean(0).sqrt() * out_norm)
        if self.out_scale is not None:
            self.out_scale.copy_(out_norm)
        scores = unit_scores(activated, self.scale, self.offsets)
        norms = scores.norm(dim=1)
        above = MASSIVE * norms.median()
        massive = int((norms > above).sum())
        self.whole_above.fill_(above if massive else math.inf)
        if self.least is not None:
            worth = None if self.out_scale is None else (activated * up).abs().float() * self.out_scale
            self.set_least(scores, worth, self.config.k)
        return massive

    @torch.no_grad()
    def set_least(self, scores: Tensor, worth: Tensor | None, k: int) -> None:
        """Set the thresholds at which tokens choose k units on average, by scores [n, p], and k_out by worth [n, f]."""
        if self.least is None:  # a model that was trained by another rule
            self.least = torch.zeros_like(self.whole_above)
            self.least_out = None if self.out_scale is None else torch.zeros_like(self.least)
        found = score_at_density(scores[:, self.config.n_shared :], target_density(self.config, k))
        self.least.copy_(found.clamp_min(LEAST))
        if self.least_out is not None:
            assert worth is not None
            k_out = self.config.k_out_at(k)
            share = (k if k_out is None else k_out) / self.config.n_pathways
            chosen = scores >= self.least
            chosen[:, : self.config.n_shared] = True
            self.least_out.copy_(score_at_density(worth * chosen, share).clamp_min(LEAST))

    def by_threshold(self, k: int) -> bool:
        """Whether thresholds choose; k of all units is the dense model."""
        return self.least is not None and self.config.rule == "controlled" and k < self.config.n_pathways

    def count(self, counts: Tensor) -> None:
        """Add a batch's counts [3] to those of the step: units that ran, neurons through W_out, possible units."""
        self.counts = counts if self.counts is None else self.counts + counts

    @torch.no_grad()
    def route(self, x: Tensor, k: int, activated: Tensor) -> Routes:
        """Return the routes of inputs x [n, d] with gate activations [n, f]; probs are shares of the scores."""
        n_shared = self.config.n_shared
        scores = unit_scores(activated, self.scale, self.offsets)
        competing = scores.clone()
        competing[:, :n_shared] = 0
        probs = competing / competing.sum(1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
        competing[:, :n_shared] = -math.inf
        least = self.least if self.by_threshold(k) else None
        chosen = top_k(competing, k - n_shared) if least is None else competing >= least
        chosen = chosen | (scores.norm(dim=1, keepdim=True) > self.whole_above)
        routes = gated(scores, probs, chosen, self.gate, n_shared)
        if self.chooser is None:
            return routes
        return gated(scores, probs, self.chooser(x, routes), self.gate, n_shared)
