"""Document pools: which pathways the tokens of a block may choose from, decided by the blocks before it.

A document's tokens are cut into blocks of `routing.pool_block`. The pool of a block are the pathways with the greatest
sums of router probability over all earlier blocks of the document; the first block may choose from all. So a document
needs few pathways, as in EMO (arXiv:2605.06663), but unlike there no choice depends on later tokens.

A sequence is a document; after its end-of-text token another begins. Padding counts for nothing. Hooks of the model's
stack prepare each forward pass and keep the sums beside the cache of keys and values.

Shapes: b sequences, t positions, n tokens (b·t), u blocks that begin in the pass and, at 0, the one it goes on with,
p pathways.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from slms.kernels.router import top_k
from slms.models.routed import Routed, routed_modules
from slms.models.transformers_internals import CACHE


class Sums(NamedTuple):
    """Sums of a place's router probabilities, float64 [b, p]."""

    before: Tensor
    """over the document's finished blocks"""
    within: Tensor
    """over the block that the next token may continue"""


class PoolLayer(CacheLayerMixin):
    """What pools need to go on after the tokens seen, kept as one more layer of a model's cache."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.position: Tensor | None = None
        """int64 [b], tokens of the current document"""
        self.sums: dict[str, Sums] = {}
        """by place"""

    def _each(self, change: Any) -> None:
        if self.position is not None:
            self.position = change(self.position)
            self.sums = {place: Sums(*map(change, sums)) for place, sums in self.sums.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the sequences of a beam search."""
        self._each(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences."""
        self._each(lambda x: x[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        self._each(lambda x: x.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        """Forget all tokens."""
        self.position, self.sums = None, {}

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError, because sums cannot forget their last tokens."""
        raise ValueError("`routing.pool` is set; its sums cannot be cut back, as assisted generation would need.")

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to allocate."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """No layer of the model writes here."""
        raise AssertionError("no keys belong here")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """No layer of the model reads here."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """It holds no keys."""
        return 0

    def get_max_length(self) -> int:
        """It holds any number of tokens."""
        return -1


class Pass:
    """The blocks of one forward pass over sequences [b, t], and the pools that follow from router probabilities.

    Args:
        real: bool [b, t], False at padding.
        ends: bool [b, t], True at tokens after which another document begins.
        block: tokens of a block.
        past: what an earlier pass over the same sequences left.
    """

    def __init__(self, real: Tensor, ends: Tensor, block: int, past: PoolLayer | None = None) -> None:
        self.real = real
        b, _ = real.shape
        start = past.position if past is not None and past.position is not None else real.new_zeros(b, dtype=torch.long)
        self.past = {} if past is None else past.sums
        count = real.cumsum(1)
        # The number of real tokens up to the last end, of this token's sequence; negative if it lies before this pass.
        last = torch.where(ends & real, count, -start[:, None]).cummax(1).values
        position = count - 1 - torch.cat([-start[:, None], last[:, :-1]], 1)
        begins = real & (position % block == 0)
        self.slot = begins.cumsum(1)
        """int64 [b, t], the index below u of each token's block"""
        self.position = count[:, -1] - last[:, -1]
        u = int(self.slot.max()) + 1
        self.opens = real.new_zeros(b, u)
        """bool [b, u], whether a block is the first of its document"""
        self.opens.scatter_(1, torch.where(begins & (position == 0), self.slot, 0), True)
        self.opens[:, 0] = start < block
        self.sums: dict[str, Sums] = {}
        """what this pass leaves, by place"""

    def allowed(self, place: str, probs: Tensor, size: int) -> Tensor:
        """Return which pathways tokens may choose, bool [n, p], by router probabilities [n, p]; `size` is a pool's."""
        b, u = self.opens.shape
        p = probs.shape[1]
        zeros = probs.new_zeros(b, p, dtype=torch.float64)
        before, within = self.past.get(place, Sums(zeros, zeros))
        rows = torch.arange(b, device=probs.device)[:, None] * u + self.slot
        counted = torch.where(self.real.flatten()[:, None], probs.detach().double(), 0.0)
        of_block = torch.cat([within[:, None], zeros[:, None].expand(b, u - 1, p)], 1).flatten(0, 1)
        of_block = of_block.index_add(0, rows.flatten(), counted).view(b, u, p)
        sums = [before]
        for i in range(1, u):
            sums.append(torch.where(self.opens[:, i, None], 0.0, sums[-1] + of_block[:, i - 1]))
        earlier = torch.stack(sums, 1)
        pool = top_k(earlier, size) | self.opens[..., None]
        last = self.slot[:, -1, None, None].expand(b, 1, p)
        self.sums[place] = Sums(earlier.gather(1, last)[:, 0], of_block.gather(1, last)[:, 0])
        return pool.flatten(0, 1)[rows.flatten()]


def watch(stack: nn.Module) -> None:
    """Prepare every forward pass of a model's stack for pools."""
    stack.register_forward_pre_hook(_before, with_kwargs=True)
    stack.register_forward_hook(_after, with_kwargs=True)


def _signature(kind: type[nn.Module]) -> inspect.Signature:
    """The signature of a stack's forward; an override that passes everything on does not name its arguments."""
    found = (inspect.signature(vars(base)["forward"]) for base in kind.__mro__ if "forward" in vars(base))
    return next(signature for signature in found if "input_ids" in signature.parameters)


def _arguments(stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = _signature(type(stack)).bind_partial(stack, *args, **kwargs).arguments
    return bound | bound.get("kwargs", {})


def _before(stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    given = _arguments(stack, args, kwargs)
    ids, embeds, mask = (given.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
    read = ids if embeds is None else embeds
    assert isinstance(read, Tensor)
    shape, device = read.shape[:2], read.device
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise ValueError("`routing.pool` is set; the attention mask must be None or [sequences, positions].")
    real = torch.ones(shape, dtype=torch.bool, device=device) if mask is None else mask[:, -shape[1] :].bool()
    ends = (
        torch.zeros_like(real) if ids is None else torch.isin(ids, ends_of(cast(PreTrainedModel, stack).config, device))
    )
    modules = _pooled(stack)
    block = modules[0].config.pool_block
    assert block is not None
    made = Pass(real, ends, block, _layer(given.get(CACHE)))
    for module in modules:
        module.pool_pass = made


def _pooled(stack: nn.Module) -> list[Routed]:
    return [module for module in routed_modules(stack).values() if module.pool is not None]


def _after(stack: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    kept = getattr(output, CACHE, None)
    if not isinstance(kept, Cache):
        return
    if (layer := _layer(kept)) is None:
        kept.layers.append(layer := PoolLayer())
    made = _pooled(stack)[0].pool_pass
    assert made is not None
    layer.position, layer.sums = made.position, made.sums


def _layer(kept: Any) -> PoolLayer | None:
    layers = kept.layers if isinstance(kept, Cache) else []
    return next((layer for layer in layers if isinstance(layer, PoolLayer)), None)


def ends_of(config: PreTrainedConfig, device: torch.device) -> Tensor:
    """The tokens that end a document, int64, by a model's configuration."""
    found = config.eos_token_id
    return torch.tensor([] if found is None else [found] if isinstance(found, int) else found, device=device).long()
