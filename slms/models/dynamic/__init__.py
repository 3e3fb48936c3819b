"""Dynamic-k on dense models without training: rules, predictor, budgets by layer, conversion."""

from slms.models.dynamic.budget import LEVELS, allocate
from slms.models.dynamic.convert import apply_rule, dynamic_layers, masking, set_densities
from slms.models.dynamic.rules import RULES, DynamicMLP, Kept

__all__ = [
    "LEVELS",
    "RULES",
    "DynamicMLP",
    "Kept",
    "allocate",
    "apply_rule",
    "dynamic_layers",
    "masking",
    "set_densities",
]
