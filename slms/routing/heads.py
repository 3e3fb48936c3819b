"""Chooses attention heads: the best k of the query heads of each group that shares keys and values.

Shapes: n tokens, d model, h query heads, g groups, m heads of one group (h = g·m); head i is of group i // m.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from slms.routing.config import RoutingConfig
from slms.routing.router import PathwayRouter
from slms.routing.rules import Allow, Routes, gated, select


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
    changes = {"n_pathways": n_heads, "k": n_groups * k_heads, "n_shared": 0, "rule": "top_k", "gate": "unit"}
    changes |= {"pool": None, "pool_block": None}
    for name, value in changes.items():
        object.__setattr__(made, name, value)
    return made


def by_group(scores: Tensor, k: int, n_groups: int, bias: Tensor | None = None) -> Routes:
    """Choose the k / g largest of each group's scores [n, h] plus bias [h]; probabilities sum to 1 in each group."""
    assert k % n_groups == 0, (k, n_groups)
    grouped = None if bias is None else bias.unflatten(-1, (n_groups, -1))
    found = select(scores.unflatten(-1, (n_groups, -1)), k=k // n_groups, gate="unit", bias=grouped)
    return Routes(scores, *(part.flatten(-2) for part in found[1:4]))


class HeadRouter(PathwayRouter):
    """A router whose pathways are query heads, chosen by group, with gate 1 and straight-through gradients."""

    def __init__(self, d_model: int, config: RoutingConfig, n_groups: int) -> None:
        super().__init__(d_model, config)
        self.n_groups = n_groups

    def route(self, x: Tensor, k: int | None = None, allow: Allow | None = None) -> Routes:
        """Return the routes of the attention's inputs x [n, d]; k overrides the configuration's, for annealing."""
        assert allow is None, "heads have no pools"
        routes = by_group(self(x), self.config.k if k is None else k, self.n_groups, self.selection_bias.float())
        return _observed(self.chooser, x, routes)


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
        return _observed(self.chooser, x, by_group(scores, k, self.n_groups))


def _observed(chooser: Callable[[Tensor, Routes], Tensor] | None, x: Tensor, routes: Routes) -> Routes:
    return routes if chooser is None else gated(routes.scores, routes.probs, chooser(x, routes), "unit")
