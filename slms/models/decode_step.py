"""One more token of one sequence through a Llama-like stack in one compiled call: exact, and used wherever it is valid.

A step replaces ``forward`` of one stack, and of its head. Whatever it was not made for (several tokens or sequences,
gradients, another type, device or cache, padding, hooks, recorders, changed modules) runs transformers' own forward.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from slms.kernels.backends import refusal
from slms.models.dynamic.mlp import DynamicMLP
from slms.models.fused_mlp import fused_gate
from slms.models.huge_pages import move_to_huge_pages
from slms.models.routed_mlp import RoutedMLP
from slms.models.transformers_internals import CACHE

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
FULL = ("input_ids", "attention_mask", "position_ids", CACHE, "use_cache", "return_dict")
"""The arguments that a step computes with; any other must be None or False."""


def _unobserved(attributes: list[tuple[dict[str, Any], Any, Any, Any]]) -> bool:
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


def _plain(x: Any) -> bool:
    """Whether inference on this tensor can leave PyTorch."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch.get_num_threads() == 1
    )


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
    """what the others and these choose: their numbers of pathways and rules, their compiled calls"""
    settings: np.ndarray
    table: np.ndarray | None
    """None if the stack holds anything unknown"""
    held: list[object]


class Step:
    """The ``forward`` of one stack; see the module's docstring."""

    def __init__(self, stack: nn.Module) -> None:
        self.stack = stack
        self._layout: Layout | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_layout": None}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        done = None if args or not self._fits(kwargs) else self._run(kwargs)
        return type(self.stack).forward(self.stack, *args, **kwargs) if done is None else done

    def _fits(self, kwargs: dict[str, Any]) -> bool:
        """Whether the arguments are one token of one unpadded sequence whose cache is a plain one."""
        ids: Any
        cache: Any
        ids, mask, positions, cache = (kwargs.get(name) for name in FULL[:4])
        if not _plain(ids) or ids.shape != (1, 1) or type(cache) is not DynamicCache:
            return False
        if any(value is not None and value is not False for name, value in kwargs.items() if name not in FULL):
            return False
        config: Any = self.stack.config
        if kwargs.get("use_cache") is False or kwargs.get("return_dict") is False or not config.use_cache:
            return False
        if getattr(config, "sliding_window", None) is not None:
            return False
        if config.output_hidden_states or config.output_attentions or not config.return_dict:
            return False
        layers = cache.layers
        if len(layers) != config.num_hidden_layers or "update" in vars(cache):
            return False
        if any(type(layer) is not DynamicLayer or "update" in vars(layer) for layer in layers):
            return False
        first: Any = layers[0]
        if not first.is_initialized or first.keys.dtype != torch.float32 or len(first.keys) != 1:
            return False
        length = first.keys.shape[2] + 1
        if positions is not None and positions.shape != (1, 1):
            return False
        return mask is None or (type(mask) is Tensor and mask.shape == (1, length) and bool(mask.all()))

    def _run(self, kwargs: dict[str, Any]) -> BaseModelOutputWithPast | None:
        layout = self._layout  # another thread may replace it
        if layout is None or not _same(layout):
            self._layout = layout = _layout(self.stack)
        if layout.table is None or not _unobserved(layout.attributes):
            return None
        if any(m.recorder is not None or m.router.chooser is not None for m in layout.routed):
            return None
        from slms.kernels.cpu import decoder  # numba takes half a second to import and is optional

        stack: Any = self.stack
        if stack.embed_tokens.weight.dtype != torch.float32:
            return None
        cache, positions = kwargs[CACHE], kwargs.get("position_ids")
        length = cache.layers[0].keys.shape[2]
        if positions is None:
            positions = torch.tensor([[length]])
        x = stack.embed_tokens(kwargs["input_ids"])
        cos, sin = (part.contiguous() for part in stack.rotary_emb(x, position_ids=positions))
        settings, table, normed = layout.settings.copy(), layout.table.copy(), torch.empty_like(x)
        settings[decoder.LENGTH] = length + 1
        addresses = [tensor.data_ptr() for tensor in (cos, sin, x, normed)]
        settings[[decoder.COS, decoder.SIN, decoder.STREAM, decoder.NORMED]] = addresses
        heads, size = int(settings[decoder.KEY_HEADS]), int(settings[decoder.SIZE])
        if (grown := _grown(cache.layers, (1, heads, length, size))) is None:
            return None
        table[:, decoder.KEYS : decoder.COLUMNS], _old, new = grown  # the old ones are read until the loop has ended
        at = 0
        while (at := decoder.layers_loop(settings, table, at)) < len(table):
            x += stack.layers[at].mlp(normed)
            at += 1
            if at == len(table):
                normed = stack.norm(x)
                break
        for layer, keys, values in zip(cache.layers, new[::2], new[1::2], strict=True):
            layer.keys, layer.values = keys, values
        return BaseModelOutputWithPast(last_hidden_state=normed, **{CACHE: cache})


def _grown(layers: list[Any], shape: tuple[int, ...]) -> tuple[np.ndarray, list[Tensor], list[Tensor]] | None:
    """Every layer's keys and values, in turn: as they are, and new ones with room for one more token.

    It also returns each layer's row of what the loop reads and writes; None unless all have this shape [1, g, s, e].
    transformers grows each on its own, by operations that take longer than the loop takes to copy.
    """
    old = [states for layer in layers for states in (layer.keys, layer.values)]
    if {_kind(states) for states in old} != {(shape, torch.float32, "cpu")}:
        return None
    one, heads, length, size = shape
    old = [states if states.stride()[2:] == (size, 1) else states.contiguous() for states in old]
    new = [old[0].new_empty(one, heads, length + 1, size) for _ in old]
    rows = [[states.data_ptr() for states in new], [states.data_ptr() for states in old], [t.stride(1) for t in old]]
    return np.array(rows).reshape(3, -1, 2).transpose(1, 0, 2).reshape(-1, 6), old, new


def _kind(states: Tensor | None) -> tuple[object, ...] | None:
    return None if states is None else (tuple(states.shape), states.dtype, states.device.type)


def _addresses(owners: list[dict[str, Tensor | None]]) -> list[int]:
    """Where every parameter and buffer lies, which tells whether one moved or has another type."""
    return [tensor.data_ptr() for owner in owners for tensor in owner.values() if tensor is not None]


def _same(layout: Layout) -> bool:
    """Whether a stack still consists of these modules, with their tensors in place."""
    return (
        layout.branches == layout.children
        and _addresses(layout.owners) == layout.tensors
        and _chosen(layout.routed, layout.ruled) == layout.chosen
    )


def _layout(stack: Any) -> Layout:
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
    return [*((module.k, module.config.rule) for module in routed), *(mlp.one_token() for mlp in ruled)]


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
        gated = fused_gate(mlp, stack.norm.weight[None]) if isinstance(mlp, RoutedMLP) else None
        if gated is not None and not gated.copied:
            row[decoder.KIND], row[decoder.CHOSEN] = decoder.BY_GATE, gated.arguments.ctypes.data
            row[decoder.B_DOWN] = 0 if mlp.b_out is None else mlp.b_out.data_ptr()
            held.append(gated)
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


class Head:
    """The ``forward`` of a language model's head, which of one token computes the logits in a compiled loop."""

    def __init__(self, head: nn.Linear) -> None:
        self.head = head

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.head.weight, self.head.bias
        tensors = (x, weight) if bias is None else (x, weight, bias)
        fits = (
            _plain(x)
            and x.numel() == x.shape[-1]
            and all(t.dtype == torch.float32 and t.is_contiguous() and t.device.type == "cpu" for t in tensors)
            and type(weight) is nn.Parameter
            and type(self.head) is nn.Linear
            and refusal("rows", "cpu", torch.float32) is None
        )
        if not fits:
            return type(self.head).forward(self.head, x)
        from slms.kernels.cpu.decoder import product_loop

        (rows, d), y = weight.shape, x.new_empty(*x.shape[:-1], len(weight))
        product_loop(weight.data_ptr(), 0 if bias is None else bias.data_ptr(), x.data_ptr(), d, y.data_ptr(), rows)
        return y


Model = TypeVar("Model", bound=nn.Module)


def serves(model: nn.Module) -> bool:
    """Whether `speed_up` changes this model."""
    return type(getattr(model, "model", None)) in STACKS and type(getattr(model, "lm_head", None)) is nn.Linear


def speed_up(model: Model) -> Model:
    """Let a dense or routed Llama, Mistral, Qwen2 or Qwen3 decode faster, in place: a token is one compiled call.

    It serves one unpadded sequence in float32 on one CPU thread, without gradients, hooks or recorders; anything else
    runs as before. Logits equal transformers' up to the order of sums: within 1e-5 on tiny models, within 3e-5 on
    SmolLM2-135M, whose largest are 23. Weights move into huge pages of memory, where they stay the same parameters.
    Other models do not change.
    """
    stack: Any = getattr(model, "model", None)
    head: Any = getattr(model, "lm_head", None)
    if serves(model):
        for module in stack.modules():
            if isinstance(module, RoutedMLP):
                module.interleave()
        move_to_huge_pages(model)
        vars(stack)["forward"], vars(head)["forward"] = Step(stack), Head(head)
    return model
