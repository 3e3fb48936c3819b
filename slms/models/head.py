"""Separates the embedding head of a causal language model, which turns the last hidden states into logits.

`through_head` runs a model's own forward pass, with its hooks, adapters and sharding, and passes on the hidden states
at the point where the model would compute the logits of all tokens. You may then apply the head to a few at a time.

Shapes: n tokens, b blocks, t position, d model, v vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
Found = TypeVar("Found")


class Head(NamedTuple):
    """y = s·(x Wᵀ + b), or c·tanh(that / c) if logits are capped; without a weight, x are the logits themselves."""

    weight: Tensor | None = None
    """[v, d]; the embedding's own matrix if the two are tied"""
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def cast(self, x: Tensor) -> Head:
        """Cast the head to the dtype in which a Linear would compute on x, which is autocast's if that is on."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if self.weight is None or dtype is None or self.weight.dtype == torch.float64:
            return self
        return self._replace(weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))

    def logits(self, x: Tensor, out: Tensor) -> Tensor:
        """Compute the logits of x [n, d] into `out` [n, v], which is fp32 or wider."""
        if self.weight is None:
            out.copy_(x)
        elif self.weight.dtype == out.dtype:
            torch.mm(x.to(out.dtype), self.weight.T, out=out)
        else:
            out.copy_(x.to(self.weight.dtype) @ self.weight.T)
        return self.after_linear(out if self.bias is None else out.add_(self.bias))

    def after_linear(self, y: Tensor) -> Tensor:
        """Apply scale and cap to the products [n, v], in place."""
        y = y if self.scale == 1 else y.mul_(self.scale)
        return y if self.cap is None else y.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, y: Tensor, out: Tensor) -> Tensor | float:
        """Return ∂y / ∂(x Wᵀ + b) at logits y [n, v]: s, or s·(1 − (y / c)²) in `out` if they are capped."""
        if self.cap is None:
            return self.scale
        return torch.div(y, self.cap, out=out).square_().sub_(1).mul_(-self.scale)


class _Read(NamedTuple):
    """A head as read from a model and its configuration."""

    module: nn.Linear
    scale: float
    cap: float | None

    def head(self) -> Head:
        return Head(self.module.weight, self.module.bias, self.scale, self.cap)


_tried: WeakKeyDictionary[nn.Module, tuple[_Read | None, bool]] = WeakKeyDictionary()
"""Model → its head as it was read when it was tried, and whether its logits are made by that alone."""


def through_head(model: PreTrainedModel, input_ids: Tensor, use: Callable[[Tensor, Head], Found]) -> Found:
    """Call `use(hidden states [b, t, d], head)` on token blocks [b, t] and return its result.

    `use` is called within the model's forward pass, when sharded weights are whole, and the model computes no logits.
    On its first call, a model is tested: it must compute its logits by one call of a plain Linear, followed by the
    scale and the cap that its configuration names. If it does not (because of an adapter on the head, or an
    architecture that does more), a warning says so, and `use` gets the model's own logits [b, t, v] of the whole batch
    with a head that changes nothing.
    """
    read, (before, fits) = _read(model), _tried.get(model, (None, True))
    known = model in _tried and before == read
    found: list[Found] = []
    if read is not None and (fits or not known):
        found = _apart(model, input_ids, use, read, trial=not known)
    if not known:
        _tried[model] = read, bool(found)
        if not found:
            logger.warning(
                "%s: its head is not a plain Linear with a known scale; losses are taken from whole logits",
                type(model).__name__,
            )
    return found[0] if found else use(model(input_ids=input_ids, use_cache=False).logits, Head())


@torch.no_grad()
def separates(model: PreTrainedModel) -> bool:
    """Return whether `through_head` avoids this model's logits; one token tests it if that is not known."""
    return through_head(
        model, torch.zeros(1, 1, dtype=torch.int64, device=model.device), lambda _, head: head.weight is not None
    )


def head_of(model: PreTrainedModel) -> Head | None:
    """Return the head of a model that `through_head` separates, else None."""
    read = _read(model) if separates(model) else None
    return None if read is None else read.head()


def _read(model: PreTrainedModel) -> _Read | None:
    """Return the head if it is a Linear that nothing else modifies, else None."""
    module, config = model.get_output_embeddings(), model.config.get_text_config()
    if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
        return None
    named = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"))
    factor, divisor, cap = (value if isinstance(value, int | float) else None for value in named)
    return _Read(module, (factor or 1.0) / (divisor or 1.0), cap)


def _apart(
    model: PreTrainedModel, input_ids: Tensor, use: Callable[[Tensor, Head], Found], read: _Read, trial: bool
) -> list[Found]:
    """Return what `use` returned, or nothing if the head does more than was read; in a trial it gets one token."""
    found: list[Found] = []
    agrees: list[bool] = []

    def before(_: nn.Module, args: tuple) -> tuple | None:
        agrees.append(len(args) == 1 and args[0].shape[:-1] == input_ids.shape and not found)
        if not agrees[-1]:
            return None
        found.append(use(args[0], read.head()))
        return (args[0][:1, :1] if trial else args[0][:, :0],)

    def after(_: nn.Module, args: tuple, y: Tensor) -> Tensor:
        agrees.append(_close(y, F.linear(args[0], read.module.weight, read.module.bias)))
        return torch.linspace(-100, 100, y.shape[-1]).to(y).expand_as(y)  # these show what follows the head

    with ExitStack() as stack:
        stack.callback(read.module.register_forward_pre_hook(before).remove)
        if trial:
            stack.callback(read.module.register_forward_hook(after).remove)
        logits = model(input_ids=input_ids, use_cache=False).logits
    if trial:
        ramp = torch.linspace(-100, 100, len(read.module.weight)).to(logits).expand(1, 1, -1)
        agrees.append(_close(logits, read.head().after_linear(ramp.clone())))
    return found if all(agrees) else []


def _close(a: Tensor, b: Tensor) -> bool:
    within = 1e-5 if torch.finfo(a.dtype).bits >= 32 else 2e-2
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=within, atol=within)
