"""Routing: scores → rule → chosen pathways and gates → balancing loss."""

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
