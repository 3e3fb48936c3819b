"""Forward passes that begin at a layer, because what enters it is known. Shapes: b blocks, t position, d model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slms.models.anatomy import family_of


class Enough(Exception):
    """Raised within a forward pass once all that was wanted has been read; whoever raises it catches it."""


class Resumed:
    """A model whose forward passes begin at `layer`: the layers before it pass on what `read` read there.

    Everything from that layer on works as ever, with its hooks, masks and positions, and so does the head. Many passes
    that differ only from `layer` on (`slms.measure.ablation`) then cost less.
    """

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        layers = model.get_submodule(family_of(model).layers)
        assert isinstance(layers, nn.ModuleList), type(layers)
        self.model, self._before, self._at = model, list(layers[:layer]), layers[layer]
        self._in_tuple = False  # whether a layer returns its hidden states as the first of several

    @torch.no_grad()
    def read(self, input_ids: Tensor) -> Tensor:
        """The hidden states [b, t, d] that enter the layer, for token blocks [b, t]."""
        found: list[Tensor] = []

        def entering(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            found.append((args[0] if args else kwargs["hidden_states"]).detach().clone())
            raise Enough

        def leaving(_: nn.Module, args: tuple, output: Any) -> None:
            self._in_tuple = isinstance(output, tuple)

        with ExitStack() as stack:
            stack.callback(self._at.register_forward_pre_hook(entering, with_kwargs=True).remove)
            if self._before:
                stack.callback(self._before[-1].register_forward_hook(leaving).remove)
            with suppress(Enough):
                self.model(input_ids, use_cache=False)
        return found[0]

    @contextmanager
    def entering(self, hidden: Tensor) -> Iterator[None]:
        """While open, every forward pass (over the blocks that were read) lets `hidden` [b, t, d] enter the layer."""

        def known(*_: Any, **__: Any) -> Any:
            return (hidden,) if self._in_tuple else hidden

        own = [layer.__dict__.get("forward") for layer in self._before]
        try:
            for layer in self._before:
                layer.forward = known
            yield
        finally:
            for layer, forward in zip(self._before, own, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward
