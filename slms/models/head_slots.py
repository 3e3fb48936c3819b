"""Executes only the chosen query heads of an attention whose heads share keys and values, in transformers' own code.

The heads of a group see the same keys and values, so attention need not know which head a query is of. Each group gets
as many slots as a token chooses heads; a slot holds, for each token, the query of one of them. Attention over slots is
dense and causal as before, with fewer heads, so that masks, windows, cache and rotation stay as they are. The rows of
the query projection and the columns of the output projection are multiplied head by head, for the tokens that chose it:
on a GPU by Triton (`slms.kernels.gpu.heads`), which decodes so too.

Shapes: n tokens (b·t), d model, h heads, e head size, s slots of all groups, p pairs of token and slot (n·s).
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from slms.kernels.backends import GPU_TOKENS, refusal
from slms.models.transformers_internals import uses_sdpa

if TYPE_CHECKING:
    from slms.kernels.gpu.heads import HeadSlots

FEWEST = 512
"""Tokens of a pass (b·t); fewer are computed whole, because a product for each head then costs more than it saves. It
was measured on a CPU; on a GPU it is an estimate, and up to GPU_TOKENS, without gradients, rows are read one by one."""


class Slots(NamedTuple):
    """Which head is in which slot: pairs sorted by head."""

    tokens: Tensor
    """int64 [p], the token of each pair, sorted by head"""
    place: Tensor
    """int64 [p], the place among the sorted pairs of each pair (token, slot) in order"""
    bounds: list[int]
    """h + 1: head i has the pairs bounds[i] to bounds[i + 1]"""
    chosen: Tensor
    """bool [n, h]"""
    s: int

    def by_head(self, of_heads: Tensor) -> list[tuple[Tensor, slice]]:
        """Return the part of rows [h·e, ...], and the pairs, of every head that some token chose."""
        parts = zip(of_heads.chunk(len(self.bounds) - 1), pairwise(self.bounds), strict=True)
        return [(part, slice(a, b)) for part, (a, b) in parts if a < b]

    def gates(self, gates: Tensor) -> Tensor:
        """Return the gates of slots [n, s], of gates [n, h]."""
        return gates[self.chosen].view(-1, self.s)

    def queries(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Return the queries of slots [n, s·e] for x [n, d], W [h·e, d] and b [h·e]."""
        found = [x.index_select(0, self.tokens[at]) @ part.T for part, at in self.by_head(W)]
        if b is not None:
            found = [q + part for q, (part, _) in zip(found, self.by_head(b), strict=True)]
        return torch.cat(found).index_select(0, self.place).view(len(x), -1)

    def written(self, W: Tensor, heads: Tensor) -> Tensor:
        """Return Σ over slots of o W_O [n, d], without bias, for W_O [d, h·e] and the slots' outputs [n, s·e]."""
        pairs = heads.reshape(self.tokens.shape[0], -1)
        sorted_pairs = torch.empty_like(pairs).index_copy(0, self.place, pairs)
        y = heads.new_zeros(len(heads), len(W))
        for part, at in self.by_head(W.T):
            written = sorted_pairs[at] @ part
            y = y.to(written.dtype).index_add_(0, self.tokens[at], written)
        return y


def slots_of(chosen: Tensor, n_groups: int) -> Slots | None:
    """Fill the slots by choices [n, h]; None unless every token chooses equally many heads of every group."""
    n, h = chosen.shape
    sizes = chosen.view(n, n_groups, -1).sum(-1)
    if not bool((sizes == sizes[0, 0]).all()) or not sizes[0, 0]:
        return None
    head = chosen.nonzero()[:, 1]
    order = head.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    bounds = [0, *torch.bincount(head, minlength=h).cumsum(0).tolist()]
    s = len(head) // n
    return Slots(order // s, place, bounds, chosen, s)


class SlotQueries(nn.Module):
    """Stands for an attention's query projection and returns the queries of slots [..., s·e]."""

    def __init__(self, projection: nn.Linear, slots: Slots | HeadSlots) -> None:
        super().__init__()
        self.slots, self._projection = slots, [projection]  # in a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        """Multiply inputs x [..., d] by each head's rows where it was chosen."""
        (projection,), flat = self._projection, x.reshape(-1, x.shape[-1])
        return self.slots.queries(flat, projection.weight, projection.bias).view(*x.shape[:-1], -1)


def with_slots(attention: nn.Module, slots: Slots | HeadSlots, n_groups: int) -> Any:
    """Return a view of an attention that computes slots, for one call; the attention itself does not change."""
    view = copy.copy(attention)
    projection = attention.q_proj
    assert isinstance(projection, nn.Linear)
    vars(view)["_modules"] = attention._modules | {"q_proj": SlotQueries(projection, slots)}
    view.num_key_value_groups = slots.s // n_groups  # type: ignore[assignment]
    return view


def on_gpu(x: Tensor) -> bool:
    """Whether Triton's kernels compute slots of inputs x."""
    return x.is_cuda and refusal("triton", "cuda", x.dtype) is None


def can_be_slots(attention: Any, out: Any, kwargs: dict[str, Any], x: Tensor) -> bool:
    """Whether plain layers compute this, nobody asks for attention weights, and it is worth it."""
    plain = all(
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        for layer in (getattr(attention, "q_proj", None), out)
    )
    asked = kwargs.get("output_attentions") or not uses_sdpa(attention.config)
    few = on_gpu(x) and len(x) <= GPU_TOKENS and not torch.is_grad_enabled()
    pays = few or (len(x) >= FEWEST and (x.device.type == "cpu" or on_gpu(x)))
    return pays and plain and not asked and not torch.compiler.is_compiling()
