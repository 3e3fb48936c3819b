"""The router, which maps an MLP's input to one score per pathway.

Shapes: n tokens, d model, h router_hidden, p pathways.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slms.routing.config import RoutingConfig
from slms.routing.follower import Decision, Group
from slms.routing.rules import RULES, Allow, Routes, select


class PathwayRouter(nn.Module):
    """Computes scores [n, p] of a layer's pathways, and the routes that follow from them.

    ``mlp``      s = W₂ relu(W₁x + b₁) + b₂
    ``linear``   s = W₂x + b₂
    (without b₂ if ``router_bias`` is false)

    A norm-regressed router (D2DMoE, arXiv:2310.04361) predicts (‖pathway output‖ − norm_shift)/norm_scale, with one
    shift and one scale per layer. This keeps the order of the norms and gives the scores unit variance at any scale of
    the layer, as softmax and sigmoid expect. Scores are computed in fp32 under any autocast or parameter dtype (ST-MoE,
    arXiv:2202.08906). The gate ``graded`` adds a second, zero-initialised head to score and gate; ``blend`` adds a
    learned scalar λ; ``ramp`` and ``relu`` add a scalar that training raises from 0 to 1
    (:func:`slms.models.routed.set_ramp`). A ``chooser`` replaces the choice, not the scores,
    and sees −∞ where a pool allows nothing
    (:func:`slms.models.routed.choose_by`). A ``group`` of layers shares the choice
    (:mod:`slms.routing.follower`). The rule ``controlled`` adds a ``threshold`` and the ``spread`` of the
    scores that it was set on (:mod:`slms.routing.budget`).
    """

    ramp: Tensor | None
    threshold: Tensor | None
    spread: Tensor | None
    selection_bias: Tensor
    norm_shift: Tensor
    norm_scale: Tensor

    def __init__(self, d_model: int, config: RoutingConfig) -> None:
        super().__init__()
        self.config, self.kind, self.n_pathways = config, config.router, config.n_pathways
        assert config.gate is not None and config.router_bias is not None  # the configuration has filled them in
        self.gate = config.gate
        self.chooser: Callable[[Tensor, Routes], Tensor] | None = None
        self.group: Group | None = None
        width = config.router_hidden if self.kind == "mlp" else d_model
        self.hidden = nn.Linear(d_model, width) if self.kind == "mlp" else None
        biased = config.router_bias
        self.out = nn.Linear(width, self.n_pathways, bias=biased)
        self.grade = nn.Linear(width, self.n_pathways, bias=biased) if self.gate == "graded" else None
        for parameter in () if self.grade is None else self.grade.parameters():
            nn.init.zeros_(parameter)
        self.blend = nn.Parameter(torch.zeros(())) if self.gate == "blend" else None
        self.register_buffer("ramp", torch.zeros(()) if self.gate in ("ramp", "relu") else None)
        self.register_buffer("selection_bias", torch.zeros(self.n_pathways))
        self.register_buffer("norm_shift", torch.zeros(()))
        self.register_buffer("norm_scale", torch.ones(()))
        self.register_buffer("threshold", None)
        self.register_buffer("spread", None)
        if RULES[config.rule].held == "threshold":
            self.keep_threshold()

    def keep_threshold(self) -> None:
        """Keep a threshold beside the weights, as the rule ``controlled`` needs; one that exists does not change."""
        if self.threshold is None:
            self.threshold, self.spread = self.norm_shift.new_zeros(()), self.norm_shift.new_ones(())

    @torch.no_grad()
    def set_norm_scale(self, norms: Tensor) -> Tensor:
        """Store the shift and scale of pathway norms [n, p]; return the standardised norms, the targets of scores."""
        self.norm_shift.copy_(norms.mean())
        self.norm_scale.copy_(norms.std().clamp_min(1e-6))
        return (norms - self.norm_shift) / self.norm_scale

    def scored(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the scores [n, p] of inputs x [n, d], and the Δ [n, p] or λ that the gate takes beside them."""
        scores, grade = self._scores_and_grade(x)
        return scores, next((m for m in (grade, self.blend, self.ramp) if m is not None), None)

    def _scores_and_grade(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(device_type=x.device.type, enabled=False):
            features = x.float()
            if self.hidden is not None:
                features = _linear(features, self.hidden).relu()
            scores = _linear(features, self.out)
            if self.grade is None:
                return scores, None
            grade = _linear(features, self.grade)
            return scores + grade, grade

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores [n, p], fp32, of inputs x [n, d]."""
        return self._scores_and_grade(x)[0]

    def route(self, x: Tensor, k: int | None = None, allow: Allow | None = None) -> Routes:
        """Return the routes of inputs x [n, d]; k overrides the configuration's; `allow` is that of `select`."""
        decision = self._decide(x, self.config.k if k is None else k, allow)
        if self.group is not None:
            self.group.keep(decision)
        return decision.by(self.chooser, x, self.gate, self.config.n_shared)

    def _decide(self, x: Tensor, k: int, allow: Allow | None) -> Decision:
        cfg = self.config
        scores, modulation = self.scored(x)
        routes = select(
            scores,
            rule=cfg.rule,
            k=k,
            top_p_share=cfg.top_p,
            tau=cfg.tau,
            gate=self.gate,
            n_shared=cfg.n_shared,
            bias=self.selection_bias.float(),
            norm_shift=self.norm_shift.float(),
            norm_scale=self.norm_scale.float(),
            least=-math.inf if self.threshold is None else self.threshold.float(),
            modulation=modulation,
            allow=allow,
        )
        seen = routes
        if allow is not None and (self.chooser is not None or self.group is not None):
            seen = routes._replace(scores=scores.masked_fill(~allow(routes.probs), -math.inf))
        return Decision(routes, seen, modulation, k)


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    bias: Tensor | None = layer.bias
    return F.linear(x, layer.weight.float(), None if bias is None else bias.float())
