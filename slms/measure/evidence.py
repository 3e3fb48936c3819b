"""The evidence from which metrics are measured, gathered at one place while the text went by.

Shapes: g document groups, u units (pathways, neurons, latents), p pathways, c classes, n tokens, r sampled tokens,
f neurons.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slms.measure.classes import GIVEN_TOKEN, TOKEN
from slms.metrics.activations import LayerSparsity
from slms.metrics.communities import Modularity, modularity
from slms.metrics.functional import (
    PartitionModularity,
    Score,
    Utilization,
    coactivation,
    entropy,
    joint_choices,
    partition_modularity,
    purity,
    purity_legacy,
    semantic_coherence,
    utilization,
)
from slms.metrics.units import MOST_TOGETHER, N_GROUPS, UnitCounts

FEWEST_USES = 20  # uses among the sampled tokens that a unit needs to be placed in the graph


@dataclass
class Evidence:
    """What was gathered at one place while the text went by."""

    place: str
    counts: UnitCounts
    scores: dict[str, Score] = field(default_factory=dict, init=False)
    part: Callable[[str, Callable[[], Any]], Any] = field(default=lambda name, make: make(), kw_only=True)
    """returns the result of a long computation by name: the kept one, else one made now"""

    @property
    def n(self) -> int:
        """The number of tokens."""
        return int(self.counts.n_tokens)

    def score(self, family: str) -> Score:
        """The specialization index against a family; computed once."""
        if family not in self.scores:
            self.scores[family] = self.part(f"si {family}", lambda: self.counts.score(family, self.together))
        return self.scores[family]

    @property
    def together(self) -> Tensor | None:
        """Which units are on at a sample of tokens, bool [r, u], if the counts do not tell which are on together."""
        return None

    def si(self, given_token: bool) -> dict[str, Score]:
        """The specialization index against every label family, or against those that were counted given the token."""
        return {
            name.removesuffix(GIVEN_TOKEN): self.score(name)
            for name in self.counts.layout.families
            if name != TOKEN and name.endswith(GIVEN_TOKEN) == given_token
        }


class Sampled(NamedTuple):
    """The choices at a sample of tokens [n], and what these tokens are."""

    chosen: Tensor
    """bool [n, p]"""
    groups: Tensor
    """int64 [n], document groups below `N_GROUPS`"""
    ids: dict[str, Tensor]
    """int64 [n], the token that is read (`input`), that follows (`next`) and that the model predicts (`predicted`);
    −1 if there is none"""
    documents: dict[str, Tensor]
    """family → int64 [n], the class of the token's document, −1 if unknown"""

    def counts(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """How often each pathway is chosen in each class [n], [g, p, c], and tokens [g, c]; −1 does not count."""
        known = classes >= 0
        classes, groups = classes[known], self.groups[known]
        kinds, column = classes.unique(return_inverse=True)
        c = len(kinds)
        cell = groups * c + column
        totals = torch.bincount(cell, minlength=N_GROUPS * c).view(N_GROUPS, c)
        sums = self.chosen.new_zeros(N_GROUPS * c, self.chosen.shape[1], dtype=torch.float32)
        sums.index_add_(0, cell, self.chosen[known].float())
        return sums.view(N_GROUPS, c, -1).movedim(-1, -2), totals

    @property
    def together(self) -> Tensor:
        """How often two pathways are chosen together, int64 [g, p, p]."""
        return torch.stack([joint_choices(self.chosen[self.groups == g]) for g in range(N_GROUPS)])


@dataclass
class Choices(Evidence):
    """Which pathways of a routed module were chosen for which tokens."""

    offsets: tuple[int, ...]
    """bounds of the pathways' units (neurons, for an MLP)"""
    captured: tuple[Tensor, Tensor] | None = field(default=None, kw_only=True)
    """the share [n] of the best choice's output norm that each token's choice captures, and document groups [n]"""
    sampled: Sampled | None = field(default=None, kw_only=True)
    """the choices themselves, if controls stand beside them"""
    by_gate: bool = field(default=False, kw_only=True)
    """whether the MLP's own gate chose, by which massive tokens keep every unit"""

    @property
    def by_class(self) -> bool:
        """Whether the tokens of each pathway were counted by class, and by their ids."""
        return TOKEN in self.counts.layout.families

    @cached_property
    def purity(self) -> Score:
        """The purity of the choices against token ids."""
        counts, totals = self.counts.tables(TOKEN)
        return purity(counts, totals, self.counts.joint(totals))

    @cached_property
    def purity_legacy(self) -> Tensor:
        """The purity [u] by the formula of *LLM Layer-wise Routing*."""
        return purity_legacy(self.counts.tables(TOKEN)[0])

    @cached_property
    def entropy(self) -> Tensor:
        """The entropy [u] of each pathway's tokens, H(t∣p), in nats."""
        return entropy(self.counts.tables(TOKEN)[0].sum(0))

    @cached_property
    def used(self) -> Utilization:
        """How evenly the pathways are used."""
        return utilization(self.counts.uses)

    def mean(self, values: Tensor) -> float:
        """The mean over pathways with a value [u], each weighing by its choices; NaN without any."""
        values, weights = values.cpu().double(), self.counts.uses.cpu().double()
        known = values.isfinite()
        total = weights[known].sum()
        return float((values[known] * weights[known]).sum() / total) if total > 0 else torch.nan


@dataclass
class Activities(Evidence):
    """How the units of a place (neurons, pathways or latents) respond to a sample of the tokens."""

    sparsity: LayerSparsity
    strength: Tensor
    """[r, u], at least 0, how strongly a unit responds"""
    on: Tensor
    """bool [r, u], whether a unit is on"""
    tokens: Tensor
    """int64 [r], token ids"""
    groups: Tensor
    """int64 [r], document groups"""
    embedding: Tensor
    """[v, d], embedding of the model's vocabulary"""
    n_nulls: int
    """number of token-shuffled graphs behind the null of Q; 0 leaves Q out"""
    neurons: tuple[Tensor, Tensor, Tensor] | None = None
    """only for pathways: activations [r, f] and document groups [r] of their neurons, and each neuron's pathway [f]"""

    @property
    def together(self) -> Tensor | None:
        """The sample, unless there are too many units to count which are on together."""
        return self.on if self.on.shape[1] <= MOST_TOGETHER else None

    @cached_property
    def active(self) -> Tensor:
        """The strength [r, u] where a unit is on, else 0."""
        return torch.where(self.on, self.strength, 0.0)

    @cached_property
    def coherence(self) -> Score:
        """How alike in meaning the tokens are that activate a unit most."""
        return self.part("coherence", lambda: semantic_coherence(self.active, self.tokens, self.embedding, self.groups))

    @cached_property
    def graph(self) -> Modularity | None:
        """Communities of co-active units (or pathways' neurons) among `in_graph`; None if left out, or with too few."""
        if not self.n_nulls or len(self.in_graph) < 3:
            return None
        activations, groups = self._activations()
        return self.part("graph", lambda: modularity(activations[:, self.in_graph], groups, self.n_nulls))

    @cached_property
    def in_graph(self) -> Tensor:
        """The units, int64 ascending, that are active at enough tokens: the most used ones, at most 4,096."""
        activations, _ = self._activations()
        used = (activations > 0).sum(0)
        order = used.argsort(descending=True, stable=True)[:MOST_TOGETHER]
        return order[used[order] >= min(FEWEST_USES, len(activations))].sort().values

    @cached_property
    def partition(self) -> PartitionModularity | None:
        """Modularity of the pathways in the graph of their neurons."""
        if not self.n_nulls or self.neurons is None:
            return None
        neurons, _, pathway = self.neurons
        return self.part("partition", lambda: partition_modularity(coactivation(neurons), pathway))

    def _activations(self) -> tuple[Tensor, Tensor]:
        return (self.strength, self.groups) if self.neurons is None else self.neurons[:2]


class OfSample(NamedTuple):
    """A number that rests on the sampled tokens."""

    value: float
    n: int
    null_mean: float = torch.nan
    null_sd: float = torch.nan
    low: float = torch.nan
    high: float = torch.nan
