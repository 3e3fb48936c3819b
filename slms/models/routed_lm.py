"""Routed language models as Hugging Face classes, one for each family, made from its own class when first needed."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from slms.models import groups, pools
from slms.models.anatomy import family_of, find_attentions, find_mlps, replace_attention, replace_mlp
from slms.models.families import FAMILIES
from slms.models.flops import flops_per_token
from slms.models.routed import Routed, routed_modules
from slms.models.routed_heads import RoutedHeads, head_shape
from slms.models.routed_mlp import RoutedMLP
from slms.models.speedups import prepare
from slms.models.transformers_internals import LeavesOut
from slms.models.variants import variant_class
from slms.models.weights import dropout_of, read_mlp
from slms.routing import Group, RoutingConfig


class RoutedMixin(LeavesOut):
    """A causal language model in which ``config.routing`` decides which MLPs and attentions are routed, and how."""

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        route_modules(self)
        prepare(self)

    def left_out(self, module: nn.Module) -> bool:
        """Whether it is a routed attention: GPT-2 would look in it for the output projection, which is outside."""
        return any(module is heads.attention for heads in routed_modules(self, RoutedHeads).values())

    def __repr__(self) -> str:
        """Describe what is routed and how; ``print(model.base_model)`` shows every module."""
        alike: dict[str, list[str]] = {}
        for place, module in routed_modules(self).items():
            alike.setdefault(module.summary(), []).append(place)
        lines = [f"{type(self).__name__}, {sum(p.numel() for p in self.parameters()):,} parameters"]
        lines += [f"  {', '.join(places)}: {summary}" for summary, places in alike.items()]
        flops = flops_per_token(self, 1)
        shares = [f"{flops.active_fraction:.0%} of all MLP neurons"]
        shares += [] if flops.head_fraction is None else [f"{flops.head_fraction:.0%} of all attention heads"]
        return "\n".join([*lines, f"  {' and '.join(shares)} execute for a token"])


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


def route_modules(model: PreTrainedModel) -> dict[str, Routed]:
    """Replace what ``model.config.routing`` names by fresh routed modules of the same shapes; return them by place."""
    routing, mlps = routing_of(model.config), find_mlps(model)
    leaders = routing.leaders(len(mlps))
    shared = {leader: Group() for leader in set(leaders.values()) if list(leaders.values()).count(leader) > 1}
    for index, leader in leaders.items():
        if routing.target != "attention":
            replace_mlp(model, index, _fresh_mlp(mlps[index], index, routing, shared.get(leader)))
        if routing.target != "mlp":
            attention = find_attentions(model)[index]
            like = next(attention.parameters())
            heads = RoutedHeads(attention, family_of(model), head_shape(model.config), routing, layer_index=index)
            heads.to(device=like.device, dtype=like.dtype).train(attention.training)
            replace_attention(model, index, heads)
    if routing.pool is not None:
        pools.watch(model.base_model)
    if shared:
        groups.watch(model.base_model)
    return routed_modules(model)


def _fresh_mlp(mlp: nn.Module, index: int, routing: RoutingConfig, group: Group | None) -> RoutedMLP:
    dense = read_mlp(mlp)
    routed = RoutedMLP(
        d_model=dense.W_in.shape[1],
        d_ff=dense.W_in.shape[0],
        config=routing,
        activation=dense.activation,
        layer_index=index,
        gated=dense.W_gate is not None,
        bias_in=dense.b_in is not None,
        bias_out=dense.b_out is not None,
        dropout=dropout_of(mlp),
        group=group,
    )
    return routed.to(device=dense.W_in.device, dtype=dense.W_in.dtype).train(mlp.training)
