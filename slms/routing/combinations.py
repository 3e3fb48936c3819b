"""Which routing options belong together: defaults that depend on another option, and what it can be combined with."""

from typing import Any

ROUTED: dict[bool, dict[str, Any]] = {
    False: {"router": "mlp", "router_bias": True, "router_init": "norm", "gate": "ramp"},
    True: {"router": "linear", "router_bias": False, "router_init": "norm", "gate": "softmax"},
}
"""The defaults of options that depend on `stock`, of a router that learns."""
OF_RELU: dict[str, Any] = {"router_bias": True, "gate": "relu"}
"""What the rule `relu`, whose gates are its scores, can be combined with; these are also its defaults."""
OF_GATE: dict[str, Any] = {
    "router_bias": None,
    "router_init": None,
    "gate": "unit",
    "pool": None,
    "router_layers": 1,
    "mean_compensation": False,
    "backend": "auto",
}
"""What the selector `gate`, which has no weights of its own, can be combined with."""
OF_FREE: dict[str, Any] = {"router_bias": None, "router_init": None, "gate": "unit"}
"""The same of the selectors of heads without weights."""
MLP_ONLY = "n_pathways k partition rule top_p tau n_shared pool pool_block router_layers backend".split()
"""Options that say nothing about attention heads."""
FREE = ("query_norm", "static")
"""Selectors of heads without weights."""
