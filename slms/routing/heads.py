"""Chooses attention heads: of each group that shares keys and values, those that all tokens share and the best others.

Shapes: n tokens, d model, h query heads, g groups, m heads of one group (h = g·m); head i is of group i // m.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slms.kernels.router import top_k
from slms.routing.config import RoutingConfig
from slms.routing.router import PathwayRouter
from slms.routing.rules import Allow, Routes, gated


def heads_config(config: RoutingConfig, n_heads: int, n_groups: int) -> RoutingConfig:
    """Return the configuration of one attention's heads: they are its pathways, and k counts those of all groups.

    Raises:
        ValueError: `routing.k_heads` exceeds the heads of a group.
    """
    each = n_heads // n_groups
    k_heads = each if config.k_heads is None else config.k_heads
    if k_heads > each:
        raise ValueError(
            f"`routing.k_heads` is {k_heads}; each of this model's {n_groups} groups of query heads has {each}."
        )
    made = copy.copy(config)  # not `replace`, whose checks are those of a whole model's options
    gate = config.gate if config.target == "attention" else "unit"
    changes = {"n_pathways": n_heads, "k": n_groups * k_heads, "n_shared": 0, "rule": "top_k", "gate": gate}
    changes |= {"pool": None, "pool_block": None}
    for name, value in changes.items():
        object.__setattr__(made, name, value)
    return made


class Heads(NamedTuple):
    """How heads compete and what they count."""

    n_groups: int = 1
    shared: Tensor | None = None
    """bool [h], those that run for every token, equally many of each group; None if there are none"""
    n_shared: int = 0
    """how many of each group these are"""
    gate: str = "unit"

    def choose(self, scores: Tensor, k: int, bias: Tensor | None = None, modulation: Tensor | None = None) -> Routes:
        """Choose k / g heads of each group, by scores [n, h] plus bias [h]; probabilities sum to 1 in each group."""
        assert k % self.n_groups == 0, (k, self.n_groups)
        ranked = (scores if bias is None else scores + bias).detach()
        chosen = top_k(self._grouped(self._competing(ranked)), k // self.n_groups - self.n_shared).flatten(-2)
        return self.weigh(scores, chosen, modulation)

    def weigh(self, scores: Tensor, chosen: Tensor, modulation: Tensor | None = None) -> Routes:
        """Give a choice [n, h] its gates; the shared heads join it, with gate 1."""
        if self.shared is not None:
            chosen = chosen & ~self.shared
        probs = self._grouped(self._competing(scores)).softmax(-1)
        parts = self._grouped(scores), probs, self._grouped(chosen), self.gate, 0
        of = modulation if modulation is None or modulation.ndim < 2 else self._grouped(modulation)
        gates = gated(*parts, of).gates.flatten(-2)
        if self.shared is not None:
            chosen, gates = chosen | self.shared, torch.where(self.shared, 1.0, gates)
        return Routes(scores, probs.flatten(-2), chosen, gates)

    def _competing(self, scores: Tensor) -> Tensor:
        return scores if self.shared is None else scores.masked_fill(self.shared, -math.inf)

    def _grouped(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.n_groups, -1))


class HeadRouter(PathwayRouter):
    """A router whose pathways are query heads, chosen by group.

    With `routing.n_shared_heads`, so many heads of each group run for every token: the first ones, until calibration.
    """

    shared: Tensor | None

    def __init__(self, d_model: int, config: RoutingConfig, n_groups: int) -> None:
        super().__init__(d_model, config)
        self.n_groups = n_groups
        first = torch.arange(config.n_pathways) % (config.n_pathways // n_groups) < config.n_shared_heads
        self.register_buffer("shared", first if config.n_shared_heads else None)

    @torch.no_grad()
    def share(self, norms: Tensor) -> None:
        """Let the heads of each group with the greatest of norms [h] run for every token, `n_shared_heads` of them."""
        if self.shared is not None:
            grouped = norms.view(self.n_groups, -1)
            self.shared.copy_(top_k(grouped, self.config.n_shared_heads).flatten())

    def route(self, x: Tensor, k: int | None = None, allow: Allow | None = None) -> Routes:
        """Return the routes of the attention's inputs x [n, d]; k overrides the configuration's, for annealing."""
        assert allow is None, "heads have no pools"
        scores, modulation = self.scored(x)
        heads = Heads(self.n_groups, self.shared, self.config.n_shared_heads, self.gate)
        routes = heads.choose(scores, self.config.k if k is None else k, self.selection_bias.float(), modulation)
        return routes if self.chooser is None else heads.weigh(scores, self.chooser(x, routes), modulation)


class HeadSelector(nn.Module):
    """Chooses heads by scores that no router computes.

    `query_norm`: s_h = ‖q_h‖ / std over heads of ‖q_h‖, the parameter-free rule of MoH (arXiv:2410.11842).
    `static`: each head's mean contribution ‖o_h W_O‖ on calibration tokens, so that every token gets the same heads.
    """

    contribution: Tensor | None
    ramp = blend = None  # it has no graded gates

    def __init__(self, config: RoutingConfig, n_groups: int) -> None:
        super().__init__()
        self.config, self.kind, self.n_groups, self.gate = config, config.router, n_groups, "unit"
        self.chooser: Callable[[Tensor, Routes], Tensor] | None = None
        static = config.router == "static"
        self.register_buffer("contribution", torch.zeros(config.n_pathways) if static else None)

    def route(self, x: Tensor, k: int, queries: Tensor | None) -> Routes:
        """Return the routes of inputs x [n, d] with queries [n, h, e] before rotation, which `static` needs not."""
        if self.contribution is not None:
            scores = self.contribution.float().expand(len(x), -1)
        else:
            assert queries is not None
            norms = queries.float().norm(dim=-1)
            scores = norms / norms.std(-1, keepdim=True).clamp_min(1e-6)
        heads = Heads(self.n_groups)
        routes = heads.choose(scores, k)
        return routes if self.chooser is None else heads.weigh(scores, self.chooser(x, routes))
