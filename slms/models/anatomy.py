"""Finds and replaces the MLPs and attentions of a causal language model of any supported family."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from slms.models.families import FAMILIES, Family, LayerInfo, family_name
from slms.models.weights import read_mlp


def family_of(model: PreTrainedModel) -> Family:
    """Return the family of a dense or routed model; raise ValueError, naming the families, if it has none."""
    return FAMILIES[family_name(model.config.model_type)]


def find_mlps(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Return each layer's MLP, dense or routed, by layer index."""
    family = family_of(model)
    return {i: getattr(layer, family.mlp) for i, layer in enumerate(_layers(model, family))}


def _layers(model: PreTrainedModel, family: Family) -> nn.ModuleList:
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList), type(layers)
    return layers


def replace_mlp(model: PreTrainedModel, index: int, mlp: nn.Module) -> None:
    """Replace the MLP of layer ``index``."""
    family = family_of(model)
    setattr(_layers(model, family)[index], family.mlp, mlp)


def find_attentions(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Return each layer's attention, dense or routed, by layer index."""
    family = family_of(model)
    return {i: layer.get_submodule(family.attention) for i, layer in enumerate(_layers(model, family))}


def replace_attention(model: PreTrainedModel, index: int, attention: nn.Module) -> None:
    """Replace the attention of layer ``index``."""
    family = family_of(model)
    _layers(model, family)[index].set_submodule(family.attention, attention)


def list_layers(model: PreTrainedModel) -> list[LayerInfo]:
    """List the index, name, d_model, d_ff and activation of every MLP of a model."""
    family, layers = family_of(model), []
    for index, mlp in find_mlps(model).items():
        weights = read_mlp(mlp)
        f, d = weights.W_in.shape
        name = f"{family.layers}.{index}.{family.mlp}"
        layers.append(LayerInfo(index, name, d, f, weights.activation, weights.W_gate is not None))
    return layers


def named_layers(model: PreTrainedModel, names: Sequence[str] | None) -> list[int]:
    """Return the indices of the named layers (`gpt_neox.layers.10.mlp`, `10` or `L10`), or of all layers for None.

    Raises:
        ValueError: there is no such layer; the message gives the nearest names.
    """
    known = {layer.name: layer.index for layer in list_layers(model)}
    if names is None:
        return list(known.values())
    numbers = {f"{prefix}{index}": index for index in known.values() for prefix in ("", "L")}
    for name in names:
        if name not in known and name not in numbers:
            # Among equally near names, prefer those with the same number.
            number = [part for part in name.split(".") if part.isdigit()]
            alike = [k for k in known if number and number[0] in k.split(".")]
            near = dict.fromkeys([*alike, *difflib.get_close_matches(name, known, n=3, cutoff=0.0)])
            raise ValueError(
                f"--layers {name}: no MLP of this model; the nearest of its {len(known)} are "
                f"{', '.join(list(near)[:3])}"
            )
    if not names:
        raise ValueError("--layers is empty; leave it out to take all layers")
    return list(dict.fromkeys((known | numbers)[name] for name in names))
