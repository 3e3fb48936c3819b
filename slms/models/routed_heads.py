"""The routed attention, in which each token executes those query heads that its router chooses.

Shapes: b batch, t position, n tokens (b·t), d model, h query heads, e head size, g groups of heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from slms.models.families import Family
from slms.models.head_slots import Slots, can_be_slots, on_gpu, slots_of, with_slots
from slms.models.routed import Routed
from slms.routing import HeadRouter, HeadSelector, PathwayRouter, Routes, RoutingConfig
from slms.routing.combinations import FREE
from slms.routing.heads import heads_config

if TYPE_CHECKING:
    from slms.kernels.gpu.heads import HeadSlots


class HeadShape(NamedTuple):
    """The sizes of an attention."""

    d: int
    """width of the model"""
    h: int
    """query heads"""
    kv: int
    """heads of keys and values, each of which serves h / kv query heads in a row"""
    e: int
    """size of a head"""

    @property
    def groups(self) -> int:
        """Groups of query heads that compete: those of a key-value head, or all if no two share one."""
        return self.kv if self.kv < self.h else 1


def head_shape(config: PreTrainedConfig) -> HeadShape:
    """Return the sizes of a model's attentions."""
    h, d = config.num_attention_heads, config.hidden_size
    kv, e = (getattr(config, name, None) for name in ("num_key_value_heads", "head_dim"))
    return HeadShape(d, h, kv or h, e or d // h)


class RoutedHeads(Routed):
    """y = b_out + Σ_{h chosen} g_h · o_h W_O[h] [+ Σ_{h not chosen} mean_out_h],  o_h = softmax(q_h Kᵀ) V.

    It holds the dense attention without its output projection (and the dropout after that), so that keys, values,
    cache, masks, rotation and windows are transformers' own. Keys and values are computed of every token. A token
    chooses equally many heads of each group. By default g_h is 1, with straight-through gradients, and with every head
    chosen this equals the dense attention.
    """

    part = "attn"
    units = "heads"
    mean_out: Tensor | None
    router: HeadRouter | HeadSelector

    def __init__(
        self, attention: nn.Module, family: Family, shape: HeadShape, config: RoutingConfig, *, layer_index: int
    ) -> None:
        config = heads_config(config, shape.h, shape.groups)
        super().__init__(layer_index, tuple(range(shape.h + 1)), config.k)
        self.shape, self.n_groups = shape, shape.groups
        self.out = _taken(attention, family.out)
        self.dropout = _taken(attention, "resid_dropout") if hasattr(attention, "resid_dropout") else nn.Identity()
        self.attention = attention
        free = config.router in FREE
        self.router = HeadSelector(config, shape.groups) if free else HeadRouter(shape.d, config, shape.groups)
        self.register_buffer("mean_out", torch.zeros(shape.h, shape.d) if config.mean_compensation else None)

    def forward(self, *args: Any, **kwargs: Any) -> tuple:
        """Return what the dense attention returns, its output [b, t, d] first; the arguments are also the same."""
        x = args[0] if args else kwargs["hidden_states"]
        flat = x.reshape(-1, x.shape[-1])
        routes = self.routes(flat)
        if self.recorder is not None:
            self.recorder(routes)
        slots = self._slots(flat, routes, kwargs)
        if slots is None:
            heads, *rest = self.attention(*args, **kwargs)
            kept = heads.unflatten(-1, (self.shape.h, -1)) * routes.gates.to(heads.dtype).view(*x.shape[:-1], -1, 1)
            y = self.out(kept.flatten(-2))
        else:
            heads, *rest = with_slots(self.attention, slots, self.n_groups)(*args, **kwargs)
            if self.router.gate != "unit" or routes.gates.requires_grad:  # else all are 1
                gates = slots.gates(routes.gates).to(heads.dtype).view(*heads.shape[:-1], -1, 1)
                heads = (heads.unflatten(-1, (slots.s, -1)) * gates).flatten(-2)
            y = slots.written(self.out.weight, heads.reshape(len(flat), -1)).view(*x.shape[:-1], -1)
            y = y if self.out.bias is None else y + self.out.bias
        if self.mean_out is not None:
            y = torch.addmm(y.flatten(0, -2), (~routes.chosen).to(y.dtype), self.mean_out.to(y.dtype)).view_as(y)
        return (self.dropout(y), *rest)

    def _slots(self, x: Tensor, routes: Routes, kwargs: dict[str, Any]) -> Slots | HeadSlots | None:
        """Return what heads tokens share slots of, if skipped heads can be left out (`slms.models.head_slots`)."""
        if not self.shared or self._k == self.shape.h or not can_be_slots(self.attention, self.out, kwargs, x):
            return None
        if not on_gpu(x):
            return slots_of(routes.chosen, self.n_groups)
        if self.router.chooser is not None:  # whether it chooses equally many is not asked, for which a GPU would wait
            return None
        from slms.kernels.gpu.heads import HeadSlots  # Triton exists for Linux alone

        return HeadSlots(routes.chosen, self._k)

    @property
    def shared(self) -> bool:
        """Whether heads share keys and values, without which skipped heads are computed too and left out."""
        return self.shape.kv < self.shape.h

    @property
    def n_always(self) -> int:
        return self.n_groups * self.config.n_shared_heads

    @property
    def competing(self) -> slice | Tensor:
        some = None if isinstance(self.router, HeadSelector) else self.router.shared
        return slice(None) if some is None else (~some).nonzero()[:, 0]

    def routes(self, x: Tensor) -> Routes:
        """Return the routes of inputs x [n, d]."""
        if isinstance(self.router, PathwayRouter):
            return super().routes(x)
        return self.router.route(x, self._k, self.queries(x) if self.router.kind == "query_norm" else None)

    def queries(self, x: Tensor) -> Tensor:
        """Return the queries [n, h, e] of inputs x [n, d], before they are normalised or rotated."""
        weight, bias = query_rows(self.attention, self.shape)
        return linear(x, weight, bias).unflatten(-1, (self.shape.h, -1))

    def W_O(self) -> Tensor:
        """Return the rows [h·e, d] of the output projection, those of a head in a row."""
        return self.out.weight if isinstance(self.out, Conv1D) else self.out.weight.T

    def summary(self) -> str:
        """Describe in one line how the module routes."""
        h, g, k = self.shape.h, self.n_groups, self._k
        of = f"of each of {g} groups " if g > 1 else ""
        chosen = {"static": "the same for every token", "query_norm": "chosen by the norms of their queries"}
        words = chosen.get(str(self.config.router), f"chosen by its {self.config.router} router")
        if some := self.config.n_shared_heads:
            words += f", {some} of them for every token"
        whole = "" if self.shared or k == h else "; all are computed, since each has keys of its own"
        return f"{h} heads, the best {k // g} {of}{words}, density {k / h:.2g}{whole}"

    def extra_repr(self) -> str:
        return f"{self.place}, heads={self.shape.h}, groups={self.n_groups}, k={self._k}"


def _taken(attention: nn.Module, name: str) -> Any:
    """Take a last step out of an attention, in which nothing is left in its place."""
    taken = getattr(attention, name)
    setattr(attention, name, nn.Identity())
    return taken


def query_rows(attention: Any, shape: HeadShape) -> tuple[Tensor, Tensor | None]:
    """Return the query projection's weight [h·e, d], head by head, and bias [h·e], with gradients."""
    if hasattr(attention, "q_proj"):
        return attention.q_proj.weight, attention.q_proj.bias
    if hasattr(attention, "c_attn"):  # GPT-2's Conv1D, [d, 3·h·e]
        width = shape.h * shape.e
        return attention.c_attn.weight[:, :width].T, attention.c_attn.bias[:width]
    fused = attention.query_key_value  # GPT-NeoX's, in which each head has its query, key and value in a row
    weight = rearrange(fused.weight, "(h three e) d -> three (h e) d", three=3, h=shape.h)[0]
    if fused.bias is None:
        return weight, None
    return weight, rearrange(fused.bias, "(h three e) -> three (h e)", three=3, h=shape.h)[0]
