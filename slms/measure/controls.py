"""The table of controls, which choose pathways on the trained model's own inputs, with the trained router's loads.

A new control is a function that makes a scorer from inputs, and an entry in `CONTROLS`. Each is fitted to the inputs of
one place, gets the biases at which every pathway has the load of the trained router, and then chooses for the same
tokens. It never changes the forward pass that it is measured on.

Shapes: n tokens, d model, p pathways.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional import load_error, matched_bias, matched_choice
from slms.metrics.functional.matching import STEPS
from slms.models.routed import Routed
from slms.routing import RULES, Routes

_MOST = 2048  # tokens that k-means clusters
_ROUNDS = 6

Scorer = Callable[[Tensor], Tensor]
"""Maps standardised inputs [n, d] to scores [n, p]."""


class ControlKind(NamedTuple):
    """One kind of control."""

    scorer: Callable[[Tensor, Tensor, torch.Generator], Scorer]
    """(standardised inputs [n, d], loads [p], generator) → scorer"""
    meaning: str
    most_seeds: int = 1000
    """seeds of it that are measured at most; a control that costs more, or varies less, needs fewer"""


def random_directions(z: Tensor, loads: Tensor, generator: torch.Generator) -> Scorer:
    """Score pathways by a linear router with independent normal weights."""
    weight = torch.randn(z.shape[1], len(loads), generator=generator).to(z) / z.shape[1] ** 0.5
    return lambda z: z @ weight


def nearest_centres(z: Tensor, loads: Tensor, generator: torch.Generator) -> Scorer:
    """Score pathways by −‖z − c_p‖² + ‖z‖², with the centres c of k-means with clusters in proportion to the loads."""
    rows = torch.randperm(len(z), generator=generator)[:_MOST].to(z.device)
    few = z[rows]
    sizes = _in_proportion(loads, len(few))
    centres = few[: len(loads)].clone() if len(few) >= len(loads) else few[torch.arange(len(loads)) % len(few)]
    for _ in range(_ROUNDS):
        scores = few @ (2 * centres.T) - centres.square().sum(1)
        label = matched_choice(scores, matched_bias(scores, sizes, 1, steps=4), 1).to(z)
        size = label.sum(0)[:, None]
        centres = torch.where(size > 0, label.T @ few / size.clamp(min=1), centres)
    return lambda z: z @ (2 * centres.T) - centres.square().sum(1)


RANDOM_ROUTER = "random_router"  # the control that stands beside each row; the others are in `Results.controls`
CONTROLS: dict[str, ControlKind] = {
    RANDOM_ROUTER: ControlKind(random_directions, "a random linear router on the same inputs, with the same loads"),
    "geometry": ControlKind(nearest_centres, "nearest centres of k-means of the same inputs, with the same loads", 3),
}


@dataclass(frozen=True)
class Fitted:
    """A control fitted to one place; it may stand in for the place's router (`slms.models.routed.choose_by`)."""

    shift: Tensor
    scale: Tensor
    scorer: Scorer
    bias: Tensor
    k: int | None
    """pathways that a token chooses, shared ones not counted; None if the number varies"""
    competing: slice | Tensor
    """index of the pathways that do not run for every token"""
    n_groups: int = 1
    """groups of pathways in each of which a token chooses k / n_groups"""

    def __call__(self, x: Tensor, routes: Routes) -> Tensor:
        """As :meth:`choose`, in place of the router that gave these routes."""
        return self.choose(x, routes.chosen)

    def choose(self, x: Tensor, own: Tensor) -> Tensor:
        """The choices, bool [n, p], at inputs x [n, d].

        Shared pathways are always chosen, and all by a token that keeps all of them in the router's `own` choices.
        """
        scores = self.scorer((x.float() - self.shift) / self.scale)
        of_group = zip(scores.chunk(self.n_groups, 1), self.bias.chunk(self.n_groups), strict=True)
        each = None if self.k is None else self.k // self.n_groups
        chosen = torch.ones_like(own)
        chosen[:, self.competing] = torch.cat([matched_choice(s, bias, each) for s, bias in of_group], 1)
        return chosen if self.k is None else chosen | own.all(1, keepdim=True)


def fit_control(
    control: ControlKind, module: Routed, x: Tensor, chosen: Tensor, seed: int, steps: int = STEPS
) -> Fitted:
    """Fit a control to the inputs x [n, d] of a place and its router's choices [n, p].

    Inputs are standardised by dimension, so that directions are random whatever the scale of a dimension. If the rule
    lets every token choose equally many pathways, so does the control; else a threshold for each pathway gives the
    loads, and the number of a token's pathways is free. steps: as in `matched_bias`.
    """
    config = module.config
    if RULES[config.rule].fixed and not chosen.all():
        competing = ~chosen.all(1)  # not massive tokens, which keep every unit (slms.routing.gate)
        x, chosen = x[competing], chosen[competing]
    loads = chosen[:, module.competing].sum(0)
    k = module.k - module.n_always if RULES[config.rule].fixed else None
    shift, scale = x.mean(0), x.std(0).clamp(min=1e-6)
    z = (x - shift) / scale
    scorer = control.scorer(z, loads, torch.Generator().manual_seed(seed))
    groups, each = module.n_groups, None if k is None else k // module.n_groups
    of_group = zip(scorer(z).chunk(groups, 1), loads.chunk(groups), strict=True)
    bias = torch.cat([matched_bias(scores, own, each, steps) for scores, own in of_group])
    return Fitted(shift, scale, scorer, bias, k, module.competing, groups)


def mismatch(found: Tensor, chosen: Tensor) -> float:
    """The largest relative error of a load among those of choices `found` [n, p], against `chosen` [n, p]."""
    return load_error(found, chosen.sum(0))


def _in_proportion(loads: Tensor, n: int) -> Tensor:
    """Whole numbers [p] in proportion to the loads that sum to n."""
    bounds = (loads.double().cumsum(0) / loads.sum() * n).round().long()
    return bounds.diff(prepend=bounds.new_zeros(1))
