"""Reads a coder's latents over a text: how often, how strongly, at which words and with which others each is used.

It passes over the text twice, each time in constant memory: the first pass counts and picks the uses worth showing, the
second reads the activations around those.

Shapes: n tokens of a batch (b·t), z uses, s latents, k kept uses, w tokens of a context, r sampled tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from slms.data.text import Blocks
from slms.measure.classes import TextClasses
from slms.measure.examples import BestUses, KeptUses
from slms.measure.passes import batches
from slms.metrics.units import UnitCounts
from slms.metrics.units import Uses as UsesOfBatch
from slms.models.pair import Models
from slms.models.sites import read_sites
from slms.sae.evaluate import Placed, measured_tokens

BINS_AN_OCTAVE, OCTAVES = 4, 16  # histogram bins run from 2^−16 to 2^16


class Uses(NamedTuple):
    """The latents that a coder used in one batch of blocks."""

    first: int
    """position of the batch's first token in the text"""
    batch: dict[str, Tensor]
    rows: Tensor
    """bool [n], which tokens are measured"""
    tokens: Tensor
    """int64 [z] ascending, the token of each use, counted from `first`"""
    latents: Tensor
    """int64 [z]"""
    values: Tensor
    """[z], positive"""


@torch.no_grad()
def read_uses(model: Models, blocks: Blocks, coder: Placed, special: Tensor, batch_size: int) -> Iterator[Uses]:
    """Yield the uses of every batch of the text, in order."""
    first = 0
    for batch in batches(blocks, batch_size):
        ids = batch["input_ids"]
        x = read_sites(model, ids, [coder.source])[coder.source.name]
        rows = measured_tokens(ids, x, special, coder.longest)
        picks, values = coder.latents(x[rows])
        on = values > 0
        tokens = rows.nonzero()[:, 0][picks.rows[on]]
        yield Uses(first, batch, rows, tokens, picks.indices[on], values[on].float())
        first += ids.numel()


class LatentStatistics:
    """Gathers statistics of every latent, in the first pass.

    Args:
        n_latents: s.
        blocks: the text, for its size and label families.
        n_strongest: how many uses of highest activation to keep for each latent.
        n_random: how many uses, drawn at random, to keep for each latent.
        n_sampled: tokens for which all uses are kept, for the co-activation graph.
        seed: seed of the random uses and tokens.
    """

    def __init__(
        self, n_latents: int, blocks: Blocks, n_strongest: int, n_random: int, n_sampled: int = 4096, seed: int = 0
    ):
        self.block_size = blocks.input_ids.shape[1]
        self.generator = torch.Generator().manual_seed(seed)
        self.n_latents, self.tokens = n_latents, 0
        self.classes = TextClasses(blocks)
        self.counts = UnitCounts(self.classes.layout, n_latents, together=True)
        self.total = torch.zeros(n_latents, dtype=torch.float64)
        self.histogram = torch.zeros(n_latents, 2 * OCTAVES * BINS_AN_OCTAVE, dtype=torch.int64)
        self.strongest, self.random = BestUses(n_latents, n_strongest), BestUses(n_latents, n_random)
        n = blocks.input_ids.size
        self.sampled = torch.zeros(n, dtype=torch.bool)
        self.sampled[torch.randperm(n, generator=self.generator)[:n_sampled]] = True
        self._sample: list[tuple[Tensor, ...]] = []

    def update(self, uses: Uses) -> None:
        """Add one batch."""
        batch, rows, latents, values = uses.batch, uses.rows, uses.latents, uses.values
        documents = batch["doc_ids"].flatten()
        self.counts.update(UsesOfBatch(uses.tokens, latents), self.classes.cells(batch, rows))
        self.tokens += int(rows.sum())
        self.total.index_add_(0, latents, values.double())
        bins = (values.log2() * BINS_AN_OCTAVE).floor().long() + OCTAVES * BINS_AN_OCTAVE
        bins = bins.clamp(0, self.histogram.shape[1] - 1)
        self.histogram.view(-1).index_add_(0, latents * self.histogram.shape[1] + bins, torch.ones_like(bins))
        positions = uses.first + uses.tokens
        places = (latents, positions, positions // self.block_size)
        self.strongest.update(places[0], values, *places[1:], values)
        self.random.update(places[0], torch.rand(len(values), generator=self.generator), *places[1:], values)
        wanted = self.sampled[uses.first : uses.first + len(rows)] & rows
        kept = wanted[uses.tokens]
        order = wanted.cumsum(0) - 1
        self._sample.append((order[uses.tokens[kept]], latents[kept], values[kept], documents[wanted]))

    @property
    def uses(self) -> Tensor:
        """The number of tokens [s] that use each latent."""
        return self.counts.uses

    def sample(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Activations [r, len(latents)] of some latents at the sampled tokens, and the tokens' documents [r]."""
        column = torch.full([self.n_latents], -1)
        column[latents] = torch.arange(len(latents))
        parts = []
        for rows, indices, values, documents in self._sample:
            part, known = torch.zeros(len(documents), len(latents)), column[indices] >= 0
            part[rows[known], column[indices[known]]] = values[known]
            parts.append(part)
        return torch.cat(parts), torch.cat([documents for *_, documents in self._sample])


class Context(NamedTuple):
    """The text around one use."""

    start: int
    """position of the first token in the text"""
    peak: int
    """index within the context of the use that was kept"""
    activations: list[float]
    """activation of the latent at each token of the context; 0 where it is not used"""


class ContextReader:
    """Reads the activations of each latent around its kept uses, in the second pass.

    Args:
        blocks: the text; a context stays inside its block and its document.
        kept: the uses.
        before, after: tokens of context around the use.
    """

    def __init__(self, blocks: Blocks, kept: Sequence[KeptUses], before: int = 20, after: int = 8):
        self.block_size, self.kept, self.before = blocks.input_ids.shape[1], kept, before
        found = [(table.position >= 0).nonzero() for table in kept]
        self.table = torch.cat([torch.full((len(at),), i) for i, at in enumerate(found)])
        self.latent, self.rank = torch.cat(found).T
        position = torch.cat([table.position[table.position >= 0] for table in kept])
        window = position[:, None] + torch.arange(-before, after + 1)
        documents = torch.from_numpy(blocks.doc_ids).flatten()
        safe = window.clamp(0, len(documents) - 1)
        inside = (window == safe) & (window // self.block_size == (position // self.block_size)[:, None])
        inside &= documents[safe] == documents[position][:, None]
        self.window = torch.where(inside, window, -1)
        self.activations = torch.zeros(window.shape)
        self.order = position.argsort()
        self.sorted_position = position[self.order]

    def update(self, uses: Uses) -> None:
        """Read the contexts that one batch holds."""
        bounds = torch.tensor([uses.first, uses.first + len(uses.rows)])
        low, high = torch.searchsorted(self.sorted_position, bounds).tolist()
        mine = self.order[low:high]
        if not len(mine):
            return
        s = len(self.kept[0].key)
        keys, order = (uses.tokens * s + uses.latents).sort()
        values = uses.values[order]
        wanted = (self.window[mine] - uses.first) * s + self.latent[mine, None]
        at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        hit = (keys[at] == wanted) & (self.window[mine] >= 0)
        self.activations[mine] = torch.where(hit, values[at], 0.0)

    def compute(self) -> list[list[list[Context]]]:
        """The contexts by [table][latent], best first."""
        out: list[list[list[Context]]] = [[[] for _ in table.key] for table in self.kept]
        for i in torch.argsort(self.rank, stable=True).tolist():
            inside = self.window[i] >= 0
            peak = self.before - int(inside.nonzero()[0])
            context = Context(int(self.window[i][inside][0]), peak, self.activations[i][inside].tolist())
            out[self.table[i]][self.latent[i]].append(context)
        return out


def neighbours(W_dec: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """For each latent, the k others whose decoder rows [s, o] have the highest cosine: indices and cosines [s, k]."""
    unit = torch.nn.functional.normalize(W_dec.float(), dim=1)
    indices, cosines = [], []
    for first in range(0, len(unit), 1024):
        cosine = unit[first : first + 1024] @ unit.T
        cosine[torch.arange(len(cosine)), first + torch.arange(len(cosine))] = -math.inf
        best = cosine.topk(min(k, len(unit) - 1), dim=1)
        indices.append(best.indices)
        cosines.append(best.values)
    return torch.cat(indices), torch.cat(cosines)


def z_bound(n: int) -> float:
    """The z that the largest of n standard normal numbers exceeds in 5 % of cases (Bonferroni).

    >>> round(z_bound(1), 3), round(z_bound(1000), 2)
    (1.645, 3.89)
    """
    return NormalDist().inv_cdf(1 - 0.05 / n)
