"""Names the routing options with which a routed model is no stock mixture of experts, and what would lift each.

A stock mixture of experts, as Mixtral, gives each token the k experts with the largest W x, and adds up their outputs
weighted by a softmax over these k. Only a linear router without bias, the rule `top_k` and the gate `softmax` do that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from slms.routing.config import RoutingConfig

NEEDED = {
    "rule": "top_k",
    "router": "linear",
    "router_bias": False,
    "gate": "softmax",
    "mean_compensation": False,
    "pool": None,
}
"""Routing option → the value that a stock mixture of experts needs, whatever its architecture."""


class Obstacle(NamedTuple):
    """Something that keeps a routed model from being a stock mixture of experts."""

    what: str
    """A sentence without its full stop, such as "`routing.gate` is unit"."""
    lift: str
    """What you can do about it: the flag of train.py or eval.py, or words."""


def routing_obstacles(config: RoutingConfig) -> list[Obstacle]:
    """Return every option of a routing configuration that no stock mixture of experts can express."""
    return [
        Obstacle(f"`routing.{name}` is {_typed(getattr(config, name))}", f"--model.routing.{name}={_typed(needed)}")
        for name, needed in NEEDED.items()
        if getattr(config, name) != needed
    ]


def check_stock(config: RoutingConfig) -> None:
    """Raise ValueError, naming each option in the way, if a configuration asks for `stock` and contradicts it."""
    if found := routing_obstacles(config):
        raise ValueError(f"`routing.stock` is true, but {listed(found)}.")


def listed(obstacles: Iterable[Obstacle]) -> str:
    """Join obstacles into one line, each with what lifts it.

    >>> listed([Obstacle("`routing.gate` is unit", "--model.routing.gate=softmax"), Obstacle("it has a bias", "none")])
    '`routing.gate` is unit (--model.routing.gate=softmax) and it has a bias (none)'
    """
    return " and ".join(f"{what} ({lift})" for what, lift in obstacles)


def _typed(value: object) -> str:
    """Spell a value as you would type it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
