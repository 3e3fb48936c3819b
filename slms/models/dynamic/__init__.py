"""Dynamic-k on dense models without training: rules, predictor, budgets by layer, conversion.

break_even   decides where a rule runs dense, because it was measured slower there
budget       decides how much each layer and each matrix may execute
convert      makes a language model whose MLPs run under a rule and share their weights with the dense model
mlp          the base class of dense MLPs under a rule
rules        the table of rules; neuron_rules choose a token's neurons, input_rules a token's inputs of each matrix,
             set_rules one set of neurons for a whole text
predictor    fits the low-rank map by which a rule predicts activations
thresholds   chooses the largest scores
"""

from slms.models.dynamic.budget import LEVELS, allocate
from slms.models.dynamic.convert import (
    apply_rule,
    dynamic_mlps,
    force_rules,
    masking,
    run_dense,
    set_densities,
    set_published,
)
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
    "force_rules",
    "masking",
    "run_dense",
    "set_densities",
    "set_published",
]
