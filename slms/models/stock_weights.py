"""Writes a routed model as a stock mixture of experts: Mixtral, Qwen2-MoE or Qwen3-MoE.

A pathway becomes an expert, the router its gate. With C the k pathways of the largest scores s = W x, and the gate
`softmax`, a routed MLP is y = Σ_{p∈C} k softmax_C(s)_p f_p(x), where f_p is the output of pathway p. A mixture of
experts has the same without the factor k, so W_out becomes k W_out. Of n shared pathways, which run with gate 1, the
factor is k − n for the others, and they become one shared expert. Qwen2-MoE multiplies its output by σ(v·x): with v = 0
that is exactly ½, so their W_out becomes 2 W_out. Nothing else changes, so only rounding differs.

Shapes: d model, f neurons, p pathways.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from slms.files import write_atomic
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.models.stock import ARCHITECTURES, Stock
from slms.routing import PathwayRouter

WIDTH = 8
"""The width of every expert is a multiple of this, filled up with neurons of zeros, which change nothing. The grouped
products of transformers need rows of a multiple of 16 bytes, 8 numbers of bf16. A Qwen2-MoE without shared pathways has
a shared expert of zeros only, because vLLM fails on an empty one."""

_COMMON = """
    vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act max_position_embeddings
    initializer_range rms_norm_eps use_cache tie_word_embeddings attention_dropout rope_parameters
    bos_token_id eos_token_id pad_token_id
""".split()


def write_stock(model: PreTrainedModel, name: str, directory: Path) -> None:
    """Write configuration and weights of a routed model that `check_model` has passed as the architecture `name`."""
    config = stock_config(model, name)
    directory.mkdir(parents=True, exist_ok=True)
    values = json.loads(config.to_json_string())
    rope = dict(values["rope_parameters"])
    # Readers built on transformers 4 know these two, and take a missing base of 10,000 for granted.
    values["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        values["rope_scaling"] = rope
    # transformers 5 writes some under one name for all models, as `num_local_experts`; others read the model's own.
    values |= {key: getattr(config, key) for key in stock_values(model, name) if key not in values}
    values["torch_dtype"] = values["dtype"]  # as it was called before transformers 4.56
    write_atomic(directory / "config.json", json.dumps(values, indent=2) + "\n")
    save_torch_state_dict(stock_state(model, name), directory)


def stock_config(model: PreTrainedModel, name: str) -> PreTrainedConfig:
    """Return the configuration that a routed model has as the architecture `name`."""
    return getattr(transformers, ARCHITECTURES[name].config)(**stock_values(model, name))


def stock_values(model: PreTrainedModel, name: str) -> dict[str, Any]:
    """Return the same as the options that the architecture's own configuration class takes."""
    config, stock = model.config, ARCHITECTURES[name]
    mlps = routed_modules(model, RoutedMLP)
    first = next(iter(mlps.values()))
    p, n, width = first.config.n_pathways, first.config.n_shared, _filled(first.offsets[1])
    values: dict[str, Any] = {key: getattr(config, key) for key in _COMMON}
    values |= {"num_experts_per_tok": first.k - n, "architectures": [stock.model], "dtype": model.dtype}
    if name == "mixtral":
        window = getattr(config, "sliding_window", None)
        values |= {"num_local_experts": p, "intermediate_size": width, "sliding_window": window}
    else:
        dense = sorted(set(range(config.num_hidden_layers)) - {mlp.layer_index for mlp in mlps.values()})
        values |= {"num_experts": p - n, "moe_intermediate_size": width, "intermediate_size": first.offsets[-1]}
        values |= {"norm_topk_prob": True, "mlp_only_layers": dense, "decoder_sparse_step": 1}
    if name == "qwen2_moe":
        values |= {"shared_expert_intermediate_size": _filled(first.offsets[n]), "qkv_bias": True}
    else:
        values["head_dim"] = getattr(config, "head_dim", None)
    return values


@torch.no_grad()
def stock_state(model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    """Return copies of a routed model's weights under the names of the architecture `name` in checkpoints."""
    stock, mlps = ARCHITECTURES[name], routed_modules(model, RoutedMLP)
    inside = tuple(f"model.layers.{mlp.layer_index}.mlp." for mlp in mlps.values())
    state = {key: w.clone() for key, w in model.state_dict().items() if not key.startswith(inside)}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for mlp in mlps.values():
        block = f"model.layers.{mlp.layer_index}.{stock.block}"
        assert mlp.W_gate is not None and isinstance(mlp.router, PathwayRouter), mlp
        n, router = mlp.config.n_shared, mlp.router.out
        state[f"{block}.gate.weight"] = router.weight[n:].clone()
        for expert, (start, end) in enumerate(list(pairwise(mlp.offsets))[n:]):
            state |= _expert(mlp, slice(start, end), mlp.k - n, f"{block}.experts.{expert}", stock)
        if stock.shared:
            state |= _expert(mlp, slice(0, mlp.offsets[n]), 2, f"{block}.shared_expert", stock)
            state[f"{block}.shared_expert_gate.weight"] = mlp.W_in.new_zeros(1, mlp.W_in.shape[1])
    if name == "qwen2_moe":  # vLLM takes biases of queries, keys and values for granted; Llama has none
        for key in [key for key in state if key.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]:
            state.setdefault(key.removesuffix("weight") + "bias", state[key].new_zeros(len(state[key])))
    return state


def _filled(width: int) -> int:
    """The width of an expert of `width` neurons, at least one multiple of `WIDTH`."""
    return max(1, -(-width // WIDTH)) * WIDTH


def _expert(mlp: RoutedMLP, rows: slice, scale: int, at: str, stock: Stock) -> dict[str, Tensor]:
    """Copy neurons, their output scaled, as one expert named `at`, filled up with neurons of zeros."""
    assert mlp.W_gate is not None, mlp
    parts = {stock.gate: mlp.W_gate[rows], stock.up: mlp.W_in[rows], stock.down: scale * mlp.W_out[rows]}
    wide = {part: F.pad(w, (0, 0, 0, _filled(len(w)) - len(w))) for part, w in parts.items()}
    wide[stock.down] = wide[stock.down].T.contiguous()
    return {f"{at}.{part}.weight": w.clone() for part, w in wide.items()}
