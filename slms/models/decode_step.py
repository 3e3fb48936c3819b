"""One more token of one sequence through a Llama-like stack in one compiled call: exact, and used wherever it is valid.

A step replaces ``forward`` of one stack, and of its head. Whatever it was not made for (several tokens or sequences,
gradients, another type, device or cache, padding, hooks, recorders, changed modules) runs transformers' own forward.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from slms.kernels.backends import refusal
from slms.models.decode_layout import STACKS, Layout, layout_of, same, unobserved
from slms.models.huge_pages import move_to_huge_pages
from slms.models.routed_mlp import RoutedMLP
from slms.models.transformers_internals import CACHE

FULL = ("input_ids", "attention_mask", "position_ids", CACHE, "use_cache", "return_dict")
"""The arguments that a step computes with; any other must be None or False."""


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
        if layout is None or not same(layout):
            self._layout = layout = layout_of(self.stack)
        if layout.table is None or not unobserved(layout.attributes):
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
