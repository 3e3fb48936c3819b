"""The table of metrics: what is measured at every place, and how tables and figures show it.

A new metric is a function of the evidence and an entry in `METRICS`. Results files, CSV, logs, tables and figures
iterate over rows and over this table.

Shapes: g document groups, u units (pathways, neurons, latents), c classes, r sampled tokens, f neurons.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slms.measure.classes import GIVEN_TOKEN, TOKEN
from slms.measure.rows import Row, row_of
from slms.metrics.activations import LayerSparsity
from slms.metrics.communities import Modularity, modularity
from slms.metrics.functional import (
    Interval,
    PartitionModularity,
    Score,
    Utilization,
    coactivation,
    entropy,
    partition_modularity,
    purity,
    purity_legacy,
    semantic_coherence,
    utilization,
)
from slms.metrics.functional.score import share_beyond_chance
from slms.metrics.units import MOST_TOGETHER, UnitCounts

FEWEST_USES = 20  # among the sampled tokens, to be placed in the graph


@dataclass
class Evidence:
    """What was gathered at one place while the text went by."""

    place: str
    counts: UnitCounts
    scores: dict[str, Score] = field(default_factory=dict, init=False)
    part: Callable[[str, Callable[[], Any]], Any] = field(default=lambda name, make: make(), kw_only=True)
    """what a long computation gives, by name: as it was kept, else made now"""

    @property
    def n(self) -> int:
        """Tokens."""
        return int(self.counts.n_tokens)

    def score(self, family: str) -> Score:
        """The specialization index against a family as it was counted; computed once."""
        if family not in self.scores:
            self.scores[family] = self.part(f"si {family}", lambda: self.counts.score(family, self.together))
        return self.scores[family]

    @property
    def together(self) -> Tensor | None:
        """bool [r, u], units at a sample of tokens, where the counts do not say which units are on together."""
        return None

    def si(self, given_token: bool) -> dict[str, Score]:
        """The specialization index against every label family, or of those that were counted given the token."""
        return {
            name.removesuffix(GIVEN_TOKEN): self.score(name)
            for name in self.counts.layout.families
            if name != TOKEN and name.endswith(GIVEN_TOKEN) == given_token
        }


@dataclass
class Choices(Evidence):
    """Which pathways of a routed module were chosen for which tokens."""

    offsets: tuple[int, ...]
    """bounds of the pathways' units (of an MLP, neurons)"""

    @cached_property
    def purity(self) -> Score:
        """Of the choices against token ids."""
        counts, totals = self.counts.tables(TOKEN)
        return purity(counts, totals, self.counts.joint(totals))

    @cached_property
    def purity_legacy(self) -> Tensor:
        """[u], by the formula of *LLM Layer-wise Routing*."""
        return purity_legacy(self.counts.tables(TOKEN)[0])

    @cached_property
    def entropy(self) -> Tensor:
        """[u], H(t∣p) in nats."""
        return entropy(self.counts.tables(TOKEN)[0].sum(0))

    @cached_property
    def used(self) -> Utilization:
        """How evenly the pathways are used."""
        return utilization(self.counts.uses)

    def mean(self, values: Tensor) -> float:
        """Over pathways with a value [u], each weighing by its choices; NaN without any."""
        values, weights = values.cpu().double(), self.counts.uses.cpu().double()
        known = values.isfinite()
        total = weights[known].sum()
        return float((values[known] * weights[known]).sum() / total) if total > 0 else torch.nan


@dataclass
class Activities(Evidence):
    """How the units of a place respond: neurons, pathways or latents, with a sample of the tokens."""

    sparsity: LayerSparsity
    strength: Tensor
    """[r, u], at least 0: how strongly a unit responds"""
    on: Tensor
    """bool [r, u]"""
    tokens: Tensor
    """int64 [r], token ids"""
    groups: Tensor
    """int64 [r], document groups"""
    embedding: Tensor
    """[v, d] of the model's vocabulary"""
    n_nulls: int
    """token-shuffled graphs behind the null of Q; 0 leaves Q out"""
    neurons: tuple[Tensor, Tensor, Tensor] | None = None
    """of pathways: activations [r, f] and document groups [r] of their neurons, and each neuron's pathway [f]"""

    @property
    def together(self) -> Tensor | None:
        """The sample, up to the number of units of which it can be told."""
        return self.on if self.on.shape[1] <= MOST_TOGETHER else None

    @cached_property
    def active(self) -> Tensor:
        """[r, u], the strength where a unit is on."""
        return torch.where(self.on, self.strength, 0.0)

    @cached_property
    def coherence(self) -> Score:
        """How alike in meaning the tokens are that activate a unit most."""
        return self.part("coherence", lambda: semantic_coherence(self.active, self.tokens, self.embedding, self.groups))

    @cached_property
    def graph(self) -> Modularity | None:
        """Communities of co-active units (of pathways, neurons) among `in_graph`; None without, or with too few."""
        if not self.n_nulls or len(self.in_graph) < 3:
            return None
        activations, groups = self._activations()
        return self.part("graph", lambda: modularity(activations[:, self.in_graph], groups, self.n_nulls))

    @cached_property
    def in_graph(self) -> Tensor:
        """int64, the units that are active at some tokens, at most 4,096, the most used first taken; ascending."""
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


def sparsity(e: Activities) -> dict[str, float | Interval]:
    values, halves = e.sparsity.value._asdict(), e.sparsity.half_width._asdict()
    found: dict[str, float | Interval] = {
        name: Interval(float(value), float(value - halves[name]), float(value + halves[name]), e.sparsity.n)
        for name, value in values.items()
    }
    return found | {f"{name}_legacy": float(value) for name, value in e.sparsity.legacy._asdict().items()}


def si_units(e: Evidence) -> dict[str, float]:
    return {family: share_beyond_chance(score.units_z) for family, score in e.si(given_token=False).items()}


def chosen_per_token(e: Choices) -> float:
    return float(e.counts.uses.cpu().double().sum() / e.n)


def density(e: Choices) -> float:
    choices, sizes = e.counts.uses.cpu().double(), torch.tensor(e.offsets).diff().double()
    return float((choices / e.n * sizes).sum() / sizes.sum())


class Metric(NamedTuple):
    """One metric: what it is measured from, and how its numbers are shown."""

    of: type[Evidence] | None
    """the evidence that it needs; None where a callback measures it while training"""
    measure: Callable[[Any], Any] | None
    """evidence → a number, or a `Score` or the like, or several by family"""
    meaning: str
    heading: str = ""
    """of its column in tables; without one it stays in the files"""
    style: str = "{:.3f}"
    """of its value in a table"""
    compared: bool = False
    """whether tables show the interval and the null beside the value"""
    title: str = ""
    """of its panel in figures over training, the unit in parentheses; without one it has none"""
    families: Mapping[str, str] = MappingProxyType({})
    """headings of the families that tables show, where not all are shown under their own names"""


METRICS: dict[str, Metric] = {
    "chosen_per_token": Metric(Choices, chosen_per_token, "pathways executed, mean over tokens"),
    "density": Metric(Choices, density, "share of the place's units (of an MLP, neurons) executed"),
    "purity": Metric(
        Choices,
        lambda e: e.purity,
        "how much of the uncertainty about the token the pathway removes, chance subtracted",
        heading="purity",
        compared=True,
        title="Purity (share of H(token))",
    ),
    "entropy": Metric(
        Choices,
        lambda e: e.mean(e.entropy),
        "H(t∣p), nats, load-weighted mean",
        heading="entropy",
        style="{:.2f}",
        title="Entropy of the tokens of a pathway (nats)",
    ),
    "purity_legacy": Metric(
        Choices,
        lambda e: e.mean(e.purity_legacy),
        "1 − H(t∣p)/ln(distinct tokens of p), load-weighted mean; grows with the number of tokens",
        heading="legacy purity",
    ),
    "utilization": Metric(
        Choices,
        lambda e: e.used.share_used,
        "share of all pathways with load above 0.1/P",
        heading="used",
        style="{:.0%}",
        title="Utilization (share of pathways used)",
    ),
    "effective_pathways": Metric(Choices, lambda e: e.used.effective, "exp H(load)/P"),
    "max_load": Metric(
        Choices,
        lambda e: e.used.max_violation + 1,
        "largest load over the mean load",
        heading="max load",
        style="{:.1f}×",
        title="Largest load (times the mean)",
    ),
    "active": Metric(Activities, lambda e: e.on.double().mean(), "share of tokens at which a unit is on, mean"),
    "coherence": Metric(
        Activities,
        lambda e: e.coherence,
        "mean cosine of the embeddings of different tokens among a unit's 32 strongest, chance subtracted",
        heading="coherence",
        compared=True,
    ),
    "q": Metric(
        Activities,
        lambda e: {} if e.graph is None else OfSample(e.graph.q, e.graph.n, *e.graph[3:5], *e.graph[1:3]),
        "modularity of the co-activation graph; the null, neurons whose tokens are shuffled, is not subtracted",
        heading="Q",
        compared=True,
    ),
    "q_stability": Metric(
        Activities,
        lambda e: {} if e.graph is None else OfSample(e.graph.stability, e.graph.n),
        "agreement of its communities over seeds, adjusted Rand index",
        heading="stable",
        style="{:.2f}",
    ),
    "q_partition": Metric(
        Activities,
        lambda e: {} if e.partition is None else OfSample(e.partition.q, len(e.on), *e.partition[1:3]),
        "modularity of the pathways; the null, random pathways of the same sizes, is not subtracted",
        heading="Q path.",
        compared=True,
    ),
    "sparsity": Metric(
        Activities,
        sparsity,
        "of a token's neurons, mean over tokens",
        heading="AS",
        families={"gini": "Gini", "top_mass": ".9 mass", "participation": "PR/N", "zeros": "zeros"},
    ),
    "si": Metric(
        Evidence,
        lambda e: e.si(given_token=False),
        "specialization index against a label family, chance subtracted",
        heading="SI",
        compared=True,
    ),
    "si_given_token": Metric(
        Evidence,
        lambda e: e.si(given_token=True),
        "the same conditional on the token, over the 32 tokens whose class varies most",
        heading="SI given the token",
        compared=True,
    ),
    "si_units": Metric(Activities, si_units, "share of units beyond chance at a false-discovery rate of 5 %"),
    "stability": Metric(
        None,
        None,
        "share of a probe's choices that the previous validation made too",
        title="Choices kept since the previous validation (share)",
    ),
    "saturation": Metric(
        None,
        None,
        "share of the final choices already made at this step; written when training ends",
        title="Choices that are already the final ones (share)",
    ),
}


def rows_of(evidence: Evidence, names: Iterable[str] = METRICS) -> list[Row]:
    """Every number that the evidence allows."""
    rows = []
    for name in names:
        metric = METRICS[name]
        if metric.of is None or metric.measure is None or not isinstance(evidence, metric.of):
            continue
        found = metric.measure(evidence)
        numbers = found if isinstance(found, dict) else {"": found}
        rows += [row_of(evidence.place, name, family, number, evidence.n) for family, number in numbers.items()]
    return rows
