"""Routing: scores → rule → chosen pathways and gates → balancing loss.

config    what a routed model is; the one home of every routing default
router    an MLP's input → a score for each pathway
rules     scores → chosen pathways; the gate on each one's output
balance   the losses that keep pathways in use
"""

from slms.routing.balance import BalanceConfig, GlobalBalance, bias_update, z_loss
from slms.routing.config import RoutingConfig
from slms.routing.router import PathwayRouter
from slms.routing.rules import RULES, Routes, select

__all__ = [
    "RULES",
    "BalanceConfig",
    "GlobalBalance",
    "PathwayRouter",
    "Routes",
    "RoutingConfig",
    "bias_update",
    "select",
    "z_loss",
]
