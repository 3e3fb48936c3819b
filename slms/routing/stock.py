"""Names the routing options with which a routed model is no stock mixture of experts, and what would lift each.

A stock mixture of experts, as Mixtral, gives each token the k experts with the largest W x, and adds up their outputs
weighted by a softmax over these k. Only a linear router without bias, the rule `top_k` and the gate `softmax` do that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from slms.routing.option_types import typed

if TYPE_CHECKING:
    from slms.routing.config import RoutingConfig

NEEDED = {
    "target": "mlp",
    "k_heads": None,
    "n_shared_heads": 0,
    "rule": "top_k",
    "router": "linear",
    "router_bias": False,
    "gate": "softmax",
    "k_out": None,
    "mean_compensation": False,
    "pool": None,
    "router_layers": 1,
}
"""Routing option → the value that a stock mixture of experts needs, whatever its architecture."""
_WITH = {"pool": " --model.routing.pool_block=null"}
"""Routing option → what must be lifted with it."""


class Obstacle(NamedTuple):
    """Something that keeps a routed model from being a stock mixture of experts."""

    what: str
    """A sentence without its full stop, such as "`routing.gate` is unit"."""
    lift: str
    """What you can do about it: the flag of train.py or eval.py, or words."""


def routing_obstacles(config: RoutingConfig) -> list[Obstacle]:
    """Return every option of a routing configuration that no stock mixture of experts can express."""
    return [
        Obstacle(
            f"`routing.{name}` is {typed(getattr(config, name))}",
            f"--model.routing.{name}={typed(needed)}{_WITH.get(name, '')}",
        )
        for name, needed in NEEDED.items()
        if getattr(config, name) != needed
    ]


def listed(obstacles: Iterable[Obstacle]) -> str:
    """Join obstacles into one line, each with what lifts it.

    >>> listed([Obstacle("`routing.gate` is unit", "--model.routing.gate=softmax"), Obstacle("it has a bias", "none")])
    '`routing.gate` is unit (--model.routing.gate=softmax) and it has a bias (none)'
    """
    return " and ".join(f"{what} ({lift})" for what, lift in obstacles)
