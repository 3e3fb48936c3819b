"""The table of metrics: what is measured at every place, and how tables and figures show it.

A new metric is a function of the evidence and an entry in `METRICS`. Results files, CSV, logs, tables and figures
iterate over rows and over this table.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from slms.measure.evidence import Activities, Choices, Evidence, OfSample
from slms.measure.rows import Row, row_of
from slms.metrics.functional.olmoe import coactivation_share, domain_specialization, vocabulary_specialization
from slms.metrics.functional.score import Score, mean_score, share_beyond_chance


def si_units(e: Evidence) -> dict[str, float]:
    return {family: share_beyond_chance(score.units_z) for family, score in e.si(given_token=False).items()}


def chosen_per_token(e: Choices) -> float:
    return float(e.counts.uses.cpu().double().sum() / e.n)


def density(e: Choices) -> float:
    choices, sizes = e.counts.uses.cpu().double(), torch.tensor(e.offsets).diff().double()
    return float((choices / e.n * sizes).sum() / sizes.sum())


def whole(e: Choices) -> dict[str, float]:
    return {"": float(e.counts.whole) / e.n} if e.by_gate else {}


def vocabulary(e: Choices) -> dict[str, Score]:
    sampled = e.sampled
    return (
        {}
        if sampled is None or not e.by_class
        else {name: vocabulary_specialization(*sampled.counts(ids)) for name, ids in sampled.ids.items()}
    )


def domains(e: Choices) -> dict[str, Score]:
    sampled = e.sampled
    return (
        {}
        if sampled is None
        else {family: domain_specialization(*sampled.counts(classes)) for family, classes in sampled.documents.items()}
    )


BY_CLASS = "chosen_by_class"
"""The metric that word classes are the families of."""


class Metric(NamedTuple):
    """One metric: what it is measured from, and how its numbers are shown."""

    of: type[Evidence] | None
    """the evidence that it needs; None if a callback measures it while training, or a command of its own does"""
    measure: Callable[[Any], Any] | None
    """evidence → a number, or a `Score` or the like, or several by family"""
    meaning: str
    heading: str = ""
    """heading of its column in tables; a metric without one appears only in files"""
    style: str = "{:z.3f}"
    """format of its value in a table"""
    compared: bool = False
    """whether tables show the interval and the null beside the value"""
    title: str = ""
    """title of its panel in figures over training, with the unit in parentheses; empty for no panel"""
    if_varies: bool = False
    """whether it has that panel only if its value changes at some place"""
    sampled: bool = False
    """whether only the sample of tokens on which controls are measured has it"""
    families: Mapping[str, str] = MappingProxyType({})
    """headings of the families that tables show, if not all are shown under their own names"""
    in_brief: int | None = None
    """how many families, those with the highest mean, the table at the end of a training run shows; None is all, and 0
    leaves the metric to `eval.py pathways`"""


METRICS: dict[str, Metric] = {
    "chosen_per_token": Metric(Choices, chosen_per_token, "pathways executed, mean over tokens"),
    "density": Metric(
        Choices,
        density,
        "share of the place's units (of an MLP, neurons) executed",
        title="Density (share of units executed)",
        if_varies=True,
    ),
    "whole": Metric(
        Choices, whole, "share of tokens that keep every unit, where gates choose: massive tokens", style="{:.2%}"
    ),
    BY_CLASS: Metric(
        None, None, "the same over the tokens of a word class, if tokens differ in their number", style="{:.2f}"
    ),
    "purity": Metric(
        Choices,
        lambda e: e.purity if e.by_class else {},
        "how much of the uncertainty about the token the pathway removes, chance subtracted",
        heading="purity",
        compared=True,
        title="Purity (share of H(token))",
    ),
    "entropy": Metric(
        Choices,
        lambda e: e.mean(e.entropy) if e.by_class else {},
        "H(t∣p), nats, load-weighted mean",
        heading="entropy",
        style="{:z.2f}",
        title="Entropy of the tokens of a pathway (nats)",
    ),
    "purity_legacy": Metric(
        Choices,
        lambda e: e.mean(e.purity_legacy) if e.by_class else {},
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
    "effective_pathways": Metric(
        Choices, lambda e: e.used.effective, "exp H(load)/P", heading="effective", style="{:.0%}"
    ),
    "oracle_overlap": Metric(
        Choices,
        lambda e: {} if e.captured is None else mean_score(*e.captured),
        "Σ over chosen pathways of the output's norm, over the most that equally many reach; mean over tokens",
        heading="captured",
        compared=True,
        sampled=True,
    ),
    "vocabulary": Metric(
        Choices,
        vocabulary,
        "OLMoE's vocabulary specialization: the largest share of a token id's tokens on one pathway, mean over ids",
        heading="vocab.",
        compared=True,
        sampled=True,
        in_brief=0,
    ),
    "domains": Metric(
        Choices,
        domains,
        "OLMoE's domain specialization: a domain's share of tokens on a pathway, mean distance to the pathway's load",
        heading="domains",
        compared=True,
        sampled=True,
        in_brief=0,
    ),
    "coactivation": Metric(
        Choices,
        lambda e: {} if e.sampled is None else coactivation_share(e.sampled.together),
        "OLMoE's co-activation: the largest share of a pathway's tokens that another runs too, mean over pathways",
        heading="co-act.",
        compared=True,
        sampled=True,
        in_brief=0,
    ),
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
        style="{:z.2f}",
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
        lambda e: e.sparsity.numbers(),
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
        in_brief=2,
    ),
    "si_given_token": Metric(
        Evidence,
        lambda e: e.si(given_token=True),
        "the same conditional on the token, over the 32 tokens whose class varies most",
        heading="SI given the token",
        compared=True,
        in_brief=0,
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
    "choice_nats": Metric(
        None,
        None,
        "loss per predicted token if every place executes the oracle's choice, or that of random routers",
        style="{:.4f}",
    ),
    "accuracy": Metric(None, None, "share of items whose answer is more probable than the foil; a tie counts ½"),
    "blind": Metric(None, None, "the same without the prompt; null of pairs of whole sentences"),
    "margin": Metric(None, None, "mean log p(answer) − log p(foil), nats", style="{:z.2f}"),
    "truncated": Metric(None, None, "items whose prompt lost its beginning to the model's context"),
    "left_out": Metric(None, None, "items that could not be scored: longer than the context, or alike in its tokens"),
    "kept": Metric(None, None, "share of neurons with which perplexity rises by the tolerance", style="{:.1%}"),
    "frac": Metric(None, None, "share of the MLP's outputs above the threshold, as the prototype has it"),
    "pr": Metric(None, None, "(Σ y⁺)² / Σ (y⁺)² of the MLP's outputs pooled over tokens", style="{:.4g}"),
    "cett": Metric(None, None, "error of every MLP's output without the others, relative, mean over tokens"),
    "nats": Metric(None, None, "loss per predicted token of the second half of each block"),
    "perplexity": Metric(None, None, "exp(nats)"),
    "ratio": Metric(None, None, "perplexity over the dense model's, documents resampled in pairs", style="{:.4f}"),
    "mlp_flops": Metric(None, None, "FLOPs per token of the MLPs with routers, predictors and dense parts"),
    "mlp_share": Metric(None, None, "the same over the dense model's", style="{:.1%}"),
    "model_flops": Metric(None, None, "FLOPs per token of the whole model with its head"),
    "model_share": Metric(None, None, "the same over the dense model's", style="{:.1%}"),
    "tokens_per_second": Metric(None, None, "of one sequence, the 20th percentile of its times", style="{:,.0f}"),
    "dense_tokens_per_second": Metric(None, None, "of the dense model in the same turns", style="{:,.0f}"),
    "mlp_speedup": Metric(None, None, "times as fast as dense, MLPs alone", style="{:.2f}×"),
    "model_speedup": Metric(None, None, "times as fast as dense, whole model with its head", style="{:.2f}×"),
}


def rows_of(evidence: Evidence, names: Iterable[str] = METRICS) -> list[Row]:
    """The rows of every number that the evidence allows."""
    rows = []
    for name in names:
        metric = METRICS[name]
        if metric.of is None or metric.measure is None or not isinstance(evidence, metric.of):
            continue
        found = metric.measure(evidence)
        numbers = found if isinstance(found, dict) else {"": found}
        rows += [row_of(evidence.place, name, family, number, evidence.n) for family, number in numbers.items()]
    return rows
