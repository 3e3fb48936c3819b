"""One router for a group of layers: that of the first layer, the leader, decides, and the other layers follow it.

Shapes: n tokens, d model, p pathways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from slms.routing.rules import Allow, Routes, gated

if TYPE_CHECKING:
    from slms.routing.router import PathwayRouter


class Decision(NamedTuple):
    """What a router decides, and what another choice by the same scores needs."""

    routes: Routes
    seen: Routes
    """the same; scores are −∞ where a pool allows nothing"""
    modulation: Tensor | None
    """what the gate takes beside scores: Δ [n, p] or λ"""
    k: int

    def by(self, chooser: Callable[[Tensor, Routes], Tensor] | None, x: Tensor, gate: str, n_shared: int) -> Routes:
        """The routes if a chooser, which may be None, chooses in the router's place for inputs x [n, d]."""
        if chooser is None:
            return self.routes
        scores, probs, *_ = self.routes
        return gated(scores, probs, chooser(x, self.seen), gate, n_shared, self.modulation)


class Group:
    """The layers that share a router, and what it decided for the tokens that their model is reading.

    A model's forward pass begins and ends it. If gradients may follow, the decision stays until the next pass, because
    layers that are computed again in the backward pass must execute the same. They use its numbers alone, so that it
    stays without its graph: gradients take the graph of the first computation.
    """

    router: PathwayRouter
    """the leader's"""

    def __init__(self) -> None:
        self.place = ""
        """the leader's"""
        self.decision: Decision | None = None
        self._reads = False
        self._first: dict[str, Tensor] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"decision": None, "_reads": False, "_first": {}}

    def lead(self, router: PathwayRouter, place: str) -> PathwayRouter:
        """Let a place's router decide for all layers of the group."""
        self.router, self.place, router.group = router, place, self
        return router

    def begin(self) -> None:
        """Forget the last pass, as another begins."""
        self.decision, self._reads, self._first = None, True, {}

    def end(self) -> None:
        """End a pass."""
        kept = self.decision if torch.is_grad_enabled() else None
        self.decision, self._reads = None if kept is None else _without_graph(kept), False

    def keep(self, decision: Decision) -> None:
        """Keep a decision for the followers, unless the leader runs alone, is computed again or is only observed."""
        learns = self.decision is not None and self.decision.routes.gates.requires_grad
        if self._reads and (torch.is_grad_enabled() or not learns):
            self.decision = decision

    def decided(self, x: Tensor, k: int, place: str) -> Decision:
        """What the leader decided for the follower at `place`, which chooses k pathways for inputs x [n, d].

        Raises:
            ValueError: the leader has not read the same tokens in this pass, or chooses another number of pathways; or
                gradients would be wrong.
        """
        found = self.decision
        if found is None or len(found.routes.scores) != len(x):
            raise ValueError(f"{place} executes what {self.place} chose for the same tokens; it cannot run alone.")
        if found.k != k:
            raise ValueError(f"k of {place} is {k}; it must be {found.k}, as at {self.place}, whose choice it shares.")
        if torch.is_grad_enabled():
            self._check_recomputed(x[:, 0].detach(), found.routes, place)
        return found

    def _check_recomputed(self, first: Tensor, routes: Routes, place: str) -> None:
        """Refuse recomputation that would execute another pass's choice, told by the inputs' first numbers [n]."""
        if any(weight.requires_grad for weight in self.router.parameters()) and not routes.gates.requires_grad:
            raise ValueError(
                f"{place} executes what {self.place} chose, whose router would get no gradients from it; compute "
                "layers again with use_reentrant=False."
            )
        if self._reads:
            self._first[place] = first.clone()
        elif (before := self._first.get(place)) is not None and (first - before).norm() > 0.01 * before.norm():
            raise ValueError(
                f"{place} is computed again after another forward pass, whose choice it would execute; call backward "
                "before the next pass."
            )


class Follower(nn.Module):
    """Takes the place of a router in a layer that executes what the leader of its group chose. It has no weights."""

    ramp = blend = None  # the leader's

    def __init__(self, group: Group, place: str) -> None:
        super().__init__()
        self.group, self.place = group, place
        self.config, self.gate = group.router.config, group.router.gate
        self.chooser: Callable[[Tensor, Routes], Tensor] | None = None

    @property
    def selection_bias(self) -> Tensor:
        """The leader's [p]."""
        return self.group.router.selection_bias

    def route(self, x: Tensor, k: int, allow: Allow | None = None) -> Routes:
        """Return the routes of the tokens with inputs x [n, d]; what is allowed was up to the leader."""
        decision = self.group.decided(x, k, self.place)
        return decision.by(self.chooser, x, self.gate, self.config.n_shared)


def _without_graph(decision: Decision) -> Decision:
    def bare(x: Any) -> Any:
        return None if x is None else x.detach().requires_grad_(x.requires_grad)

    routes, seen = (Routes(*map(bare, of)) for of in (decision.routes, decision.seen))
    return Decision(routes, seen, bare(decision.modulation), decision.k)
