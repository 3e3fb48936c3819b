"""Routing: scores → rule → chosen pathways and gates → balancing loss.

config    the configuration of a routed model, with every routing default
combinations  defaults that depend on another option, and what it can be combined with
option_types  whether a value has an option's type, and how both are spelled
router    maps an MLP's input to a score for each pathway
follower  lets a group of layers share one router
heads     chooses attention heads by the group that shares keys and values
gate      scores the units of a gated MLP by its own gate activations
rules     map scores to the chosen pathways and to the gate on each one's output
stock     names what keeps a routed model from being a stock mixture of experts
balance   the losses that keep all pathways in use
budget    what holds the mean number of pathways to k if k follows the token
"""

from slms.routing.balance import BalanceConfig, GlobalBalance, bias_update, z_loss
from slms.routing.budget import Budget, budget_of, set_positive, set_threshold, target_density
from slms.routing.config import RoutingConfig
from slms.routing.follower import Follower, Group
from slms.routing.gate import GateSelector
from slms.routing.heads import HeadRouter, HeadSelector
from slms.routing.router import PathwayRouter
from slms.routing.rules import RULES, Routes, select

__all__ = [
    "RULES",
    "BalanceConfig",
    "Budget",
    "Follower",
    "GateSelector",
    "GlobalBalance",
    "Group",
    "HeadRouter",
    "HeadSelector",
    "PathwayRouter",
    "Routes",
    "RoutingConfig",
    "bias_update",
    "budget_of",
    "select",
    "set_positive",
    "set_threshold",
    "target_density",
    "z_loss",
]
