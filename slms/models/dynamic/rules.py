"""The rules that choose what a dense MLP executes, from statistics of calibration tokens and without training.

Every rule runs in two ways. `masked` computes everything and then leaves out what was not chosen; it measures quality
and saves nothing. `forward` executes. For a few tokens it reads only the chosen neurons (or inputs). For many tokens,
per-token sets would read all weights anyway, so the dense MLP runs unless all tokens share one set. From a measured
density on (`break_even`) the dense MLP runs for few tokens too, unless the rule is forced.

What is left out counts as 0, as in the papers' code. With `centre` it counts as its calibrated mean, which is folded
into the bias at no cost (like SCAP's mode-centering, arXiv:2412.07174): with μ = E[h],
y = b_out + μ W_out + Σ_{i kept} (h_i − μ_i) W_out_i. Comparisons keep NaN, because it must reach the output.
"""

from slms.models.dynamic.input_rules import TEAL, WINA
from slms.models.dynamic.mlp import DynamicMLP
from slms.models.dynamic.neuron_rules import CATS, CETT, LowRank, Oracle
from slms.models.dynamic.set_rules import GRIFFIN, Static

RULES: dict[str, type[DynamicMLP]] = {
    "oracle": Oracle,
    "cett": CETT,
    "teal": TEAL,
    "wina": WINA,
    "cats": CATS,
    "low_rank": LowRank,
    "griffin": GRIFFIN,
    "static": Static,
}
