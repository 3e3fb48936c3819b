"""Keeps the uses of each latent that are worth showing: the strongest, and some drawn at random.

Shapes: s latents, k kept, z uses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KeptUses(NamedTuple):
    """The kept uses of every latent, best first; if there are fewer than k, the last positions are −1."""

    key: Tensor
    """float32 [s, k]"""
    position: Tensor
    """int64 [s, k] token of the use, counted from the first of the text"""
    value: Tensor
    """float32 [s, k] activation"""


class BestUses:
    """Keeps for each latent the k uses of highest key, at most one from each block, in constant memory.

    With the activation as key, these are the strongest uses; with a random key, a random sample of uses.
    """

    def __init__(self, n_latents: int, k: int):
        self.k = k
        self.kept = KeptUses(
            torch.full((n_latents, k), -torch.inf),
            torch.full((n_latents, k), -1, dtype=torch.int64),
            torch.zeros(n_latents, k),
        )

    def update(self, latents: Tensor, keys: Tensor, positions: Tensor, blocks: Tensor, values: Tensor) -> None:
        """Offer uses [z]: `latents`, `keys`, token `positions`, and the `blocks` that hold them.

        A block's uses of a latent must come in one call.
        """
        if not len(latents):
            return
        _, cell = torch.unique(torch.stack([latents, blocks], 1), dim=0, return_inverse=True)
        first = _ranked(cell, keys, 1)[0]
        latents, keys, positions, values = (x[first] for x in (latents, keys, positions, values))
        chosen, rank = _ranked(latents, keys, self.k)
        offered = BestUses(len(self.kept.key), self.k).kept
        at = (latents[chosen], rank)
        for table, column in zip(offered, (keys, positions, values), strict=True):
            table[at] = column[chosen].to(table.dtype)
        both = [torch.cat(pair, dim=1) for pair in zip(self.kept, offered, strict=True)]
        best = both[0].topk(self.k, dim=1).indices
        self.kept = KeptUses(*(table.gather(1, best) for table in both))


def _ranked(groups: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The indices of the k highest keys of each group, and their ranks in it; ties go to the first."""
    order = keys.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    _, counts = torch.unique_consecutive(groups[order], return_counts=True)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[rank < k], rank[rank < k]
