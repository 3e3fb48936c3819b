"""Lists the MLPs of a model, or of a base by name from its config.json, without the seconds of importing PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slms.models.directory import check_directory
from slms.models.families import FAMILIES, LayerInfo, family_name
from slms.models.source import BaseConfig, as_base, fetch, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The keys under which a configuration may hold a size; the first that is present counts.
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer")
_D_MODEL = ("hidden_size", "n_embd")
_D_FF = ("intermediate_size", "n_inner")
_ACTIVATION = ("hidden_act", "activation_function")
_KNOWN = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
_WIDE = ("gpt2", "gpt_neo")  # families with d_ff = 4 d_model if their configuration gives none


def list_layers(model: PreTrainedModel | BaseConfig | str | Path) -> list[LayerInfo]:
    """List index, name, d_model, d_ff and activation of every MLP of a model or named base, without reading weights.

    Raises:
        ValueError, OSError: there is no such base, or its MLP is not known.
    """
    if not isinstance(model, BaseConfig | str | Path):
        from slms.models import anatomy

        return anatomy.list_layers(model)
    base = BaseConfig(**{**vars(as_base(model)), "init": "random"})
    config = check_directory(fetch(resolve(base), base.revision, weights=False), weights=False)
    reshaped = any(value is not None for value in (base.d_model, base.n_layers))
    listed = None if reshaped else layers_of(config)
    if listed is None:
        from slms.models import anatomy
        from slms.models.base import build_meta

        return anatomy.list_layers(build_meta(base))
    return listed


def layers_of(config: dict[str, Any]) -> list[LayerInfo] | None:
    """List the MLPs that a config.json describes; None if only transformers knows a size or the activation.

    Raises:
        ValueError: the MLP of this model type is not known.
    """
    name = family_name(config["model_type"])
    family = FAMILIES[name]

    def first(keys: tuple[str, ...]) -> Any:
        return next((config[key] for key in keys if config.get(key) is not None), None)

    n_layers, d_model, d_ff, activation = first(_LAYERS), first(_D_MODEL), first(_D_FF), first(_ACTIVATION)
    if d_ff is None and d_model is not None and name in _WIDE:
        d_ff = 4 * d_model
    if None in (n_layers, d_model, d_ff) or activation not in _KNOWN or name.startswith("gemma"):
        return None  # Gemma's `gelu` means the tanh approximation, and its later models use another key
    return [
        LayerInfo(i, f"{family.layers}.{i}.{family.mlp}", d_model, d_ff, activation, family.gate is not None)
        for i in range(n_layers)
    ]
