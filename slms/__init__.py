"""SLMS specialises a dense language model, measures whether it did, and runs only what it needs.

Data flows in this order: text → token blocks → base model → (calibration activations → partition →
routed model) → logits and routes → metrics → results.

    data       text only: stories (the embedded corpus), corpora, token blocks, probe tasks, the Lightning data module
    models     base models by name, families, places and hooks, partition, routed modules, convert, save and load
    routing    router, selection rules and gates, balancing losses
    sae        sparse autoencoders: coders, training step, export, load
    metrics    pure functions and thin torchmetrics classes
    measure    computes numbers: one file per measurement, all rows of one table
    report     presents numbers: tables, figures, pages, cards, results files
    lit        LightningModules and the training command line
    commands   the commands of eval.py: arguments → measure → report
    callbacks  what a run logs and writes (at the top of a checkout)
    kernels    operations of routed MLPs: Triton, CPU, reference, dispatch (at the top of a checkout)
    configs    YAMLs of runs, probe tasks (at the top of a checkout)

    main                 the programs slms-train and slms-eval, or train.py and eval.py of a checkout
    files, json_values   writes that are whole or absent; dataclasses as JSON
    cli, progress        one-line errors; progress bars and lines

network       finds out within seconds whether the Hugging Face hub answers
option_names  lists the options by their full names and suggests one for a mistyped name
"""

import importlib
from typing import TYPE_CHECKING, Any

from slms.models.registration import register_when_imported

if TYPE_CHECKING:
    from slms.commands.export import export_model
    from slms.models.base import load_base
    from slms.models.convert import route
    from slms.models.decode_step import speed_up
    from slms.models.io import load_model, save_model
    from slms.models.listing import list_layers
    from slms.routing.config import RoutingConfig
    from slms.sae.load import load_coder, load_many

register_when_imported()  # AutoModelForCausalLM opens routed models

__version__ = "0.1.0"
__all__ = [
    "RoutingConfig",
    "export_model",
    "list_layers",
    "load_base",
    "load_coder",
    "load_many",
    "load_model",
    "route",
    "save_model",
    "speed_up",
]

_HOME = {
    "load_base": "slms.models.base",
    "list_layers": "slms.models.listing",
    "route": "slms.models.convert",
    "load_model": "slms.models.io",
    "save_model": "slms.models.io",
    "speed_up": "slms.models.decode_step",
    "export_model": "slms.commands.export",
    "RoutingConfig": "slms.routing.config",
    "load_coder": "slms.sae.load",
    "load_many": "slms.sae.load",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that `import slms` stays quick."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'slms' has no attribute {name!r}")
