"""Routed language models as Hugging Face classes, one for each architecture.

``register()`` makes AutoModelForCausalLM know them. They are written out, so that they pickle.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    GemmaForCausalLM,
    GPT2LMHeadModel,
    GPTNeoForCausalLM,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from slms.models import routed_config
from slms.models.anatomy import dropout_of, find_mlps, read_mlp, replace_mlp
from slms.models.attention import prepare
from slms.models.routed_config import (
    RoutedGemma2Config,
    RoutedGemma3TextConfig,
    RoutedGemmaConfig,
    RoutedGPT2Config,
    RoutedGPTNeoConfig,
    RoutedGPTNeoXConfig,
    RoutedLlamaConfig,
    RoutedMistralConfig,
    RoutedQwen2Config,
    RoutedQwen3Config,
)
from slms.models.routed_mlp import RoutedMLP
from slms.routing import RoutingConfig


class RoutedMixin:
    """A causal language model some of whose MLPs are routed, as its ``config.routing`` says."""

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]  # of the dense class beside it
        assert isinstance(self, PreTrainedModel), type(self)
        route_mlps(self)
        prepare(self)


def routing_of(config: PreTrainedConfig) -> RoutingConfig:
    """The routing configuration that a routed model's configuration carries."""
    if not isinstance(config.routing, dict):
        raise ValueError(
            f"`routing` of a {config.model_type} configuration is {config.routing!r}; it must be a mapping."
        )
    return RoutingConfig.from_dict(config.routing)


def route_mlps(model: PreTrainedModel) -> dict[int, RoutedMLP]:
    """Put fresh routed MLPs of the same shapes in the place of the dense ones that ``model.config.routing`` names."""
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


class RoutedGPTNeoForCausalLM(RoutedMixin, GPTNeoForCausalLM):
    config_class = RoutedGPTNeoConfig


class RoutedGPTNeoXForCausalLM(RoutedMixin, GPTNeoXForCausalLM):
    config_class = RoutedGPTNeoXConfig


class RoutedGPT2LMHeadModel(RoutedMixin, GPT2LMHeadModel):
    config_class = RoutedGPT2Config


class RoutedLlamaForCausalLM(RoutedMixin, LlamaForCausalLM):
    config_class = RoutedLlamaConfig


class RoutedMistralForCausalLM(RoutedMixin, MistralForCausalLM):
    config_class = RoutedMistralConfig


class RoutedQwen2ForCausalLM(RoutedMixin, Qwen2ForCausalLM):
    config_class = RoutedQwen2Config


class RoutedQwen3ForCausalLM(RoutedMixin, Qwen3ForCausalLM):
    config_class = RoutedQwen3Config


class RoutedGemmaForCausalLM(RoutedMixin, GemmaForCausalLM):
    config_class = RoutedGemmaConfig


class RoutedGemma2ForCausalLM(RoutedMixin, Gemma2ForCausalLM):
    config_class = RoutedGemma2Config


class RoutedGemma3ForCausalLM(RoutedMixin, Gemma3ForCausalLM):
    config_class = RoutedGemma3TextConfig


ROUTED: dict[type[PreTrainedModel], type[PreTrainedModel]] = {
    GPTNeoForCausalLM: RoutedGPTNeoForCausalLM,
    GPTNeoXForCausalLM: RoutedGPTNeoXForCausalLM,
    GPT2LMHeadModel: RoutedGPT2LMHeadModel,
    LlamaForCausalLM: RoutedLlamaForCausalLM,
    MistralForCausalLM: RoutedMistralForCausalLM,
    Qwen2ForCausalLM: RoutedQwen2ForCausalLM,
    Qwen3ForCausalLM: RoutedQwen3ForCausalLM,
    GemmaForCausalLM: RoutedGemmaForCausalLM,
    Gemma2ForCausalLM: RoutedGemma2ForCausalLM,
    Gemma3ForCausalLM: RoutedGemma3ForCausalLM,
}
"""Dense class → routed class."""


def register() -> None:
    """Let transformers' Auto classes load every routed model; may be called again."""
    routed_config.register()
    for routed in ROUTED.values():
        AutoModelForCausalLM.register(config_of(routed), routed, exist_ok=True)


def config_of(model: type[PreTrainedModel]) -> type[PreTrainedConfig]:
    """The configuration class of a model class."""
    assert model.config_class is not None, model
    return model.config_class


register()
