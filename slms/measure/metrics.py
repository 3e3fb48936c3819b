"""The table of metrics: what is measured at every place, and how tables and figures show it.

A new metric is a function of the evidence and an entry in `METRICS`. Results files, CSV, logs, tables and figures
iterate over rows and over this table.

Shapes: g document groups, u units (pathways), c classes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slms.measure.classes import GIVEN_TOKEN, TOKEN
from slms.measure.rows import Row, row_of
from slms.metrics.functional import Score, Utilization, entropy, purity, purity_legacy, utilization
from slms.metrics.units import UnitCounts


@dataclass
class Evidence:
    """What was gathered at one place while the text went by."""

    place: str
    counts: UnitCounts

    @property
    def n(self) -> int:
        """Tokens."""
        return int(self.counts.n_tokens)

    def si(self, given_token: bool) -> dict[str, Score]:
        """The specialization index against every label family, or of those that were counted given the token."""
        families = [name for name in self.counts.layout.families if name != TOKEN]
        return {
            name.removesuffix(GIVEN_TOKEN): self.scores[name]
            for name in families
            if name.endswith(GIVEN_TOKEN) == given_token
        }

    @cached_property
    def scores(self) -> dict[str, Score]:
        """The specialization index by family as it was counted."""
        return {name: self.counts.score(name) for name in self.counts.layout.families if name != TOKEN}


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
        """[u], as the sources define it."""
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
    """of its panel in figures over training; without one it has none"""


METRICS: dict[str, Metric] = {
    "chosen_per_token": Metric(Choices, chosen_per_token, "pathways executed, mean over tokens"),
    "density": Metric(Choices, density, "share of the place's units (of an MLP, neurons) executed"),
    "purity": Metric(
        Choices,
        lambda e: e.purity,
        "how much of the uncertainty about the token the pathway removes, chance subtracted",
        heading="purity",
        compared=True,
        title="Purity",
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
        title="Largest load over the mean load",
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
    "stability": Metric(
        None,
        None,
        "share of a probe's choices that the previous validation made too",
        title="Choices kept since the previous validation",
    ),
    "saturation": Metric(
        None,
        None,
        "share of the final choices already made at this step; written when training ends",
        title="Choices that are already the final ones",
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
