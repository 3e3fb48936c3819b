"""Routed language models as Hugging Face classes, one for each family, made from its own class when first needed."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from slms.models.anatomy import find_mlps, replace_mlp
from slms.models.families import FAMILIES
from slms.models.flops import flops_per_token
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.models.speedups import prepare
from slms.models.variants import variant_class
from slms.models.weights import dropout_of, read_mlp
from slms.routing import RoutingConfig


class RoutedMixin(PreTrainedModel):
    """A causal language model in which ``config.routing`` decides which MLPs are routed, and how."""

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        route_mlps(self)
        prepare(self)

    def __repr__(self) -> str:
        """Describe what is routed and how; ``print(model.base_model)`` shows every module."""
        alike: dict[str, list[str]] = {}
        for place, module in routed_modules(self).items():
            alike.setdefault(module.summary(), []).append(place)
        lines = [f"{type(self).__name__}, {sum(p.numel() for p in self.parameters()):,} parameters"]
        lines += [f"  {', '.join(places)}: {summary}" for summary, places in alike.items()]
        flops = flops_per_token(self, 1)
        return "\n".join([*lines, f"  {flops.active_fraction:.0%} of all MLP neurons execute for a token"])


@cache
def routed_class(family: str) -> type[PreTrainedModel]:
    """Return the routed class of a family, which can be pickled, and register it with AutoModelForCausalLM."""
    return variant_class("routed", RoutedMixin, family)


def __getattr__(name: str) -> type[PreTrainedModel]:
    """Return a routed class by name, since pickle may ask for it in a process that has not made it yet."""
    for family, row in FAMILIES.items():
        if name == f"Routed{row.model}":
            return routed_class(family)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def routing_of(config: PreTrainedConfig) -> RoutingConfig:
    """Return the routing configuration inside a routed model's configuration."""
    if not isinstance(config.routing, dict):
        raise ValueError(
            f"`routing` of a {config.model_type} configuration is {config.routing!r}; it must be a mapping."
        )
    return RoutingConfig.from_dict(config.routing)


def route_mlps(model: PreTrainedModel) -> dict[int, RoutedMLP]:
    """Replace the dense MLPs that ``model.config.routing`` names by fresh routed MLPs of the same shapes."""
    routing, mlps, routed = routing_of(model.config), find_mlps(model), {}
    for index in routing.routed_layers(len(mlps)):
        dense = read_mlp(mlps[index])
        routed[index] = RoutedMLP(
            d_model=dense.W_in.shape[1],
            d_ff=dense.W_in.shape[0],
            config=routing,
            activation=dense.activation,
            layer_index=index,
            gated=dense.W_gate is not None,
            bias_in=dense.b_in is not None,
            bias_out=dense.b_out is not None,
            dropout=dropout_of(mlps[index]),
        )
        routed[index].to(device=dense.W_in.device, dtype=dense.W_in.dtype).train(mlps[index].training)
        replace_mlp(model, index, routed[index])
    return routed
