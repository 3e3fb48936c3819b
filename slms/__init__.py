"""SLMS specialises a dense language model, proves that it did, and runs only what it needs.

The way of the data: text → token blocks → base model → (calibration activations → partition →
routed model) → logits and routes → metrics → results.

    data       text only: stories (the embedded corpus), corpora, token blocks, probe tasks, the Lightning data module
    models     base models by name, families, places and hooks, partition, routed modules, convert, save and load
    routing    router, selection rules and gates, balancing losses
    sae        sparse autoencoders: coders, training step, export
    metrics    pure functions and thin torchmetrics classes
    measure    numbers only: a file a measurement, rows of one table
    report     shapes only: tables, figures, pages, cards, results files
    lit        LightningModules and the training command line
    commands   arguments → measure → report: the commands of eval.py

    files, json_values   whole writes; dataclasses as JSON
    cli, progress        errors of one line; how far long work has come

network       whether the Hugging Face hub answers, said within seconds
option_names  what options there are by their full names, and which of them a mistyped one may have meant
"""

import importlib
from typing import TYPE_CHECKING, Any

from slms.models.registration import register_when_imported

if TYPE_CHECKING:
    from slms.models.base import load_base
    from slms.models.convert import route
    from slms.models.io import load_model, save_model
    from slms.models.listing import list_layers
    from slms.routing.config import RoutingConfig

register_when_imported()  # AutoModelForCausalLM opens routed models

__version__ = "0.1.0"
__all__ = ["RoutingConfig", "list_layers", "load_base", "load_model", "route", "save_model"]

_HOME = {
    "load_base": "slms.models.base",
    "list_layers": "slms.models.listing",
    "route": "slms.models.convert",
    "load_model": "slms.models.io",
    "save_model": "slms.models.io",
    "RoutingConfig": "slms.routing.config",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import slms` stays quick."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'slms' has no attribute {name!r}")
