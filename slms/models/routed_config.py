"""Configurations of routed language models: each architecture's own, with a ``routing`` object.

They are written out, so that they pickle. The models are in ``routed_lm``, which takes long to import.
"""

from __future__ import annotations

import importlib
from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.configuration_auto import AutoConfig


class RoutedConfig:
    """What a routed configuration has beside its architecture's fields: making one registers its model."""

    def __post_init__(self, **kwargs: Any) -> None:
        importlib.import_module("slms.models.routed_lm")  # registers the models with AutoModelForCausalLM
        super().__post_init__(**kwargs)  # type: ignore[misc]  # of the architecture's configuration beside it


class RoutedGPTNeoConfig(RoutedConfig, GPTNeoConfig):
    model_type = "routed_gpt_neo"
    routing: dict | None = None


class RoutedGPTNeoXConfig(RoutedConfig, GPTNeoXConfig):
    model_type = "routed_gpt_neox"
    routing: dict | None = None


class RoutedGPT2Config(RoutedConfig, GPT2Config):
    model_type = "routed_gpt2"
    routing: dict | None = None


class RoutedLlamaConfig(RoutedConfig, LlamaConfig):
    model_type = "routed_llama"
    routing: dict | None = None


class RoutedMistralConfig(RoutedConfig, MistralConfig):
    model_type = "routed_mistral"
    routing: dict | None = None


class RoutedQwen2Config(RoutedConfig, Qwen2Config):
    model_type = "routed_qwen2"
    routing: dict | None = None


class RoutedQwen3Config(RoutedConfig, Qwen3Config):
    model_type = "routed_qwen3"
    routing: dict | None = None


class RoutedGemmaConfig(RoutedConfig, GemmaConfig):
    model_type = "routed_gemma"
    routing: dict | None = None


class RoutedGemma2Config(RoutedConfig, Gemma2Config):
    model_type = "routed_gemma2"
    routing: dict | None = None


class RoutedGemma3TextConfig(RoutedConfig, Gemma3TextConfig):
    model_type = "routed_gemma3_text"
    routing: dict | None = None


CONFIGS = (
    RoutedGPTNeoConfig,
    RoutedGPTNeoXConfig,
    RoutedGPT2Config,
    RoutedLlamaConfig,
    RoutedMistralConfig,
    RoutedQwen2Config,
    RoutedQwen3Config,
    RoutedGemmaConfig,
    RoutedGemma2Config,
    RoutedGemma3TextConfig,
)


def register() -> None:
    """Let AutoConfig read every routed configuration; may be called again."""
    for config in CONFIGS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
