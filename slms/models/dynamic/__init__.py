"""Dynamic-k on dense models without training: rules, predictor, budgets by layer, conversion.

budget   decides how much each layer may execute
convert  makes a language model whose MLPs run under a rule and share their weights with the dense model
mlp      the base class of dense MLPs under a rule
"""

from slms.models.dynamic.budget import LEVELS, allocate
from slms.models.dynamic.convert import apply_rule, dynamic_mlps, masking, set_densities
from slms.models.dynamic.mlp import DynamicMLP, Kept
from slms.models.dynamic.rules import RULES

__all__ = [
    "LEVELS",
    "RULES",
    "DynamicMLP",
    "Kept",
    "allocate",
    "apply_rule",
    "dynamic_mlps",
    "masking",
    "set_densities",
]
