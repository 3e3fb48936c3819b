"""Cut language models as Hugging Face classes: some layers have MLPs of fewer neurons, each layer its own number.

A cut MLP is the family's own module with smaller matrices. Its down-projection always has a bias, which holds the mean
of what was cut.

Shapes: d model, f neurons.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from slms.models.anatomy import find_mlps
from slms.models.families import FAMILIES
from slms.models.place import parse_place
from slms.models.speedups import prepare
from slms.models.variants import variant_class
from slms.models.weights import family_of_mlp, read_mlp


class CutMixin(PreTrainedModel):
    """A causal language model in which ``config.cut`` gives the number of neurons of some MLPs, by place."""

    dense_widths: dict[int, int]
    """layer → neurons that its MLP had before it was cut"""

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        cut_mlps(self)
        prepare(self)


@cache
def cut_class(family: str) -> type[PreTrainedModel]:
    """Return the cut class of a family, which can be pickled, and register it with AutoModelForCausalLM."""
    return variant_class("cut", CutMixin, family)


def __getattr__(name: str) -> type[PreTrainedModel]:
    """Return a cut class by name, since pickle may ask for it in a process that has not made it yet."""
    for family, row in FAMILIES.items():
        if name == f"Cut{row.model}":
            return cut_class(family)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def widths_of(config: PreTrainedConfig, n_layers: int) -> dict[int, int]:
    """Return the widths in a cut model's configuration, by layer.

    Raises:
        ValueError: ``cut`` is no mapping of MLPs of the model to whole numbers from 1.
    """
    found: dict[int, int] = {}
    for name, width in (config.cut if isinstance(config.cut, dict) else {"": config.cut}).items():
        place = parse_place(name) if name else None
        if place is None or place.part != "mlp" or place.layer >= n_layers or type(width) is not int or width < 1:
            raise ValueError(
                f"`cut` of a {config.model_type} configuration is {config.cut!r}; it must map places of MLPs, L0.mlp "
                f"to L{n_layers - 1}.mlp, to numbers of neurons."
            )
        found[place.layer] = width
    return found


def cut_mlps(model: CutMixin) -> dict[int, nn.Module]:
    """Give the dense MLPs that ``model.config.cut`` names fresh matrices of its widths; return them by layer.

    Raises:
        ValueError: a width exceeds the dense MLP's.
    """
    mlps, widths = find_mlps(model), widths_of(model.config, len(find_mlps(model)))
    model.dense_widths = {}
    for index, width in widths.items():
        f, _ = read_mlp(mlps[index]).W_in.shape
        if width > f:
            raise ValueError(f"`cut` gives L{index}.mlp {width} neurons; the dense MLP has {f}.")
        model.dense_widths[index] = f
        narrow(mlps[index], width)
    return {index: mlps[index] for index in widths}


def narrow(mlp: nn.Module, width: int) -> nn.Module:
    """Give a dense MLP, in place, fresh matrices for `width` neurons; return it."""
    family = family_of_mlp(mlp)
    for name in (family.up, family.gate):
        if name is not None:
            layer = getattr(mlp, name)
            setattr(mlp, name, _like(layer, read_mlp(mlp).W_in.shape[1], width, layer.bias is not None))
    down = getattr(mlp, family.down)
    setattr(mlp, family.down, _like(down, width, read_mlp(mlp).W_out.shape[1], bias=True))
    if hasattr(mlp, "intermediate_size"):
        mlp.intermediate_size = width  # type: ignore[assignment]  # a number in every family
    return mlp


def _like(layer: nn.Linear | Conv1D, n_in: int, n_out: int, bias: bool) -> nn.Linear | Conv1D:
    """A fresh layer of the same kind, device, dtype and mode; a new bias is 0."""
    with torch.device(layer.weight.device):
        made: nn.Linear | Conv1D = (
            Conv1D(n_out, n_in) if isinstance(layer, Conv1D) else nn.Linear(n_in, n_out, bias=bias)
        )
    if made.bias is not None:
        nn.init.zeros_(made.bias)
    return made.to(layer.weight.dtype).train(layer.training)
