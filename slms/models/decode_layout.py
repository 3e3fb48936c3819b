"""A Llama-like stack as the compiled decoding step reads it, and what tells whether it has changed since."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from slms.kernels.backends import refusal
from slms.models.dynamic.mlp import DynamicMLP
from slms.models.fused_mlp import fused_gate, fused_rows
from slms.models.routed_mlp import RoutedMLP

STACKS: dict[type, tuple[Any, Any, Any, Any]] = {
    llama.LlamaModel: (llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaRMSNorm, llama.LlamaMLP),
    mistral.MistralModel: (
        mistral.MistralDecoderLayer,
        mistral.MistralAttention,
        mistral.MistralRMSNorm,
        mistral.MistralMLP,
    ),
    qwen2.Qwen2Model: (qwen2.Qwen2DecoderLayer, qwen2.Qwen2Attention, qwen2.Qwen2RMSNorm, qwen2.Qwen2MLP),
    qwen3.Qwen3Model: (qwen3.Qwen3DecoderLayer, qwen3.Qwen3Attention, qwen3.Qwen3RMSNorm, qwen3.Qwen3MLP),
}
"""By class of stack, the exact classes of layer, attention, norm and dense MLP."""


class Layout(NamedTuple):
    """A stack as the compiled loop reads it; all that it holds by address is held.

    What tells whether the stack has changed is read before every token, after weights have passed through every cache:
    as few dictionaries as will do.
    """

    attributes: list[tuple[dict[str, Any], Any, Any, Any]]
    """of every module inside: all, and the dictionaries of modules, of parameters and of buffers among them"""
    branches: list[dict[str, nn.Module | None]]
    """the modules' own dictionaries of modules, if not empty"""
    children: list[dict[str, nn.Module | None]]
    """what these held"""
    owners: list[dict[str, Tensor | None]]
    """the modules' own dictionaries of parameters and of buffers, if not empty"""
    tensors: list[int]
    """where these lay"""
    routed: list[RoutedMLP]
    ruled: list[DynamicMLP]
    chosen: list[object]
    """what the others and these choose: their numbers of pathways, rules and versions, their compiled calls"""
    settings: np.ndarray
    table: np.ndarray | None
    """None if the stack holds anything unknown"""
    held: list[object]


def unobserved(attributes: list[tuple[dict[str, Any], Any, Any, Any]]) -> bool:
    """Whether no hook or changed method watches these modules, none is training, and they keep their dictionaries."""
    everywhere = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return False
    for one, modules, parameters, buffers in attributes:
        if one["training"] or one["_forward_hooks"] or one["_forward_pre_hooks"] or "forward" in one:
            return False
        if one["_modules"] is not modules or one["_parameters"] is not parameters or one["_buffers"] is not buffers:
            return False
    return True


def _addresses(owners: list[dict[str, Tensor | None]]) -> list[int]:
    """Where every parameter and buffer lies, which tells whether one moved or has another type."""
    return [tensor.data_ptr() for owner in owners for tensor in owner.values() if tensor is not None]


def same(layout: Layout) -> bool:
    """Whether a stack still consists of these modules, with their tensors in place."""
    return (
        layout.branches == layout.children
        and _addresses(layout.owners) == layout.tensors
        and _chosen(layout.routed, layout.ruled) == layout.chosen
    )


def layout_of(stack: Any) -> Layout:
    modules = [module for name, module in stack.named_modules() if not name.startswith("rotary_emb")]
    routed = [module for module in modules if isinstance(module, RoutedMLP)]
    ruled = [module for module in modules if isinstance(module, DynamicMLP)]
    settings, table, held = _read(stack, modules) or (np.zeros(0, np.int64), None, [])
    branches = [module._modules for module in modules if module._modules]
    owners: list[Any] = [o for module in modules for o in (module._parameters, module._buffers) if o]
    return Layout(
        [(vars(m), m._modules, m._parameters, m._buffers) for m in modules[1:]],
        branches,
        [dict(branch) for branch in branches],
        owners,
        _addresses(owners),
        routed,
        ruled,
        _chosen(routed, ruled),
        settings,
        table,
        held,
    )


def _chosen(routed: list[RoutedMLP], ruled: list[DynamicMLP]) -> list[object]:
    return [
        *((module.k, module.config.rule, module.screened) for module in routed),
        *(mlp.one_token() for mlp in ruled),
    ]


def _read(stack: Any, modules: list[nn.Module]) -> tuple[np.ndarray, np.ndarray, list[object]] | None:
    """The settings and the table of a stack, and what they hold by address; None if it holds anything unknown."""
    if type(stack) not in STACKS or refusal("rows", "cpu", torch.float32) is not None:
        return None
    from slms.kernels.cpu import decoder
    from slms.kernels.cpu.pointwise import CODES

    config, (layer_class, attention, norm, dense) = stack.config, STACKS[type(stack)]
    norms = [module for module in modules if type(module) is norm]
    epsilons = {module.variance_epsilon for module in norms}
    if config.hidden_act not in CODES or len(epsilons) != 1:
        return None
    held: list[object] = []
    one = stack.norm.weight[None]  # the shape and type of one token
    table = np.zeros((len(stack.layers), decoder.COLUMNS), np.int64)

    def put(i: int, weight: int, bias: int | None, owner: Any) -> bool:
        """Note the weight of a plain layer, and its bias; tell whether it is plain."""
        if type(owner) is not (norm if bias is None else nn.Linear):
            return False
        tensors = {weight: owner.weight} | ({} if bias is None else {bias: owner.bias})
        for column, tensor in tensors.items():
            if tensor is None:
                continue
            if type(tensor) is not nn.Parameter or tensor.dtype != torch.float32 or not tensor.is_contiguous():
                return False
            held.append(tensor)
            table[i, column] = tensor.data_ptr()
        return True

    if not put(0, decoder.NORM, None, stack.norm):  # the first layer's own takes its place below
        return None
    layer: Any
    for i, layer in enumerate(stack.layers):
        attn: Any = layer.self_attn
        mlp: Any = layer.mlp
        row = table[i]
        if type(layer) is not layer_class or type(attn) is not attention:
            return None
        parts: list[tuple[int, int | None, Any]] = [
            (decoder.NORM, None, layer.input_layernorm),
            (decoder.NORM_2, None, layer.post_attention_layernorm),
        ]
        parts += [(decoder.Q, decoder.B_Q, attn.q_proj), (decoder.KEY, decoder.B_KEY, attn.k_proj)]
        parts += [(decoder.VALUE, decoder.B_VALUE, attn.v_proj), (decoder.OUT, decoder.B_OUT, attn.o_proj)]
        if hasattr(attn, "q_norm"):
            parts += [(decoder.Q_NORM, None, attn.q_norm), (decoder.K_NORM, None, attn.k_norm)]
        if not all(put(i, *part) for part in parts):
            return None
        row[decoder.KIND] = decoder.OTHER
        gated = fused_gate(mlp, one) if isinstance(mlp, RoutedMLP) else None
        routed = fused_rows(mlp, one) if isinstance(mlp, RoutedMLP) else None
        if gated is not None and not gated.copied:
            row[decoder.KIND], row[decoder.CHOSEN] = decoder.BY_GATE, gated.arguments.ctypes.data
            row[decoder.B_DOWN] = 0 if mlp.b_out is None else mlp.b_out.data_ptr()
            held.append(gated)
        elif routed is not None:
            row[decoder.KIND], row[decoder.CHOSEN] = decoder.BY_ROUTER, routed.arguments.ctypes.data
            held.append(routed)
        elif isinstance(mlp, DynamicMLP) and (ruled := mlp.one_token()) is not None:
            row[decoder.KIND], row[decoder.CHOSEN] = decoder.BY_RULE, ruled.arguments.ctypes.data
            held.append(ruled)
        elif type(mlp) is dense:
            parts = [(decoder.GATE, decoder.B_GATE, mlp.gate_proj), (decoder.UP, decoder.B_UP, mlp.up_proj)]
            if all(put(i, *part) for part in (*parts, (decoder.DOWN, decoder.B_DOWN, mlp.down_proj))):
                row[decoder.KIND], row[decoder.F] = decoder.DENSE, len(mlp.gate_proj.weight)
    attn, constants = stack.layers[0].self_attn, np.array([*epsilons, stack.layers[0].self_attn.scaling], np.float32)
    held += [constants, stack.norm.weight]
    settings = np.zeros(decoder.SETTINGS, np.int64)
    sizes = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, attn.head_dim
    settings[: decoder.COS] = *sizes, 0, CODES[config.hidden_act]
    settings[decoder.CONSTANTS], settings[decoder.LAST_NORM] = constants.ctypes.data, stack.norm.weight.data_ptr()
    return settings, table, held
