"""Compares runs: their gaps to the dense runs, paired by document, and what makes the runs hard to compare."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slms.measure.rows import log_name, mean_rows
from slms.measure.schema import Results
from slms.metrics.functional import adjusted_rand_index
from slms.metrics.functional.intervals import paired_difference


class ComparedRun(NamedTuple):
    """One line of the comparison; gaps are against the mean of the dense runs."""

    run: str
    role: str
    seed: int | None
    tokens_trained: int
    nats: float
    low: float | None
    high: float | None
    perplexity: float
    gap: float | None
    """nats above the dense runs of this comparison (the base, fine-tuned on the same tokens)"""
    gap_low: float | None
    """lower end of the paired 95 % interval over documents; null if the runs were measured on different documents"""
    gap_high: float | None
    perplexity_ratio: float | None
    active_fraction: float | None
    mlp_saved: float | None
    total_saved: float | None
    seconds: float
    means: dict[str, float]
    """the mean of every metric over the routed places, by its name in logs"""


class Comparison(NamedTuple):
    runs: list[ComparedRun]
    gap_ratio: float | None
    """mean routed gap / mean static gap, if dense, static and routed runs are all present"""
    differences: dict[str, list[str] | list[int]]
    """differences in data, base or token counts that make the runs hard to compare"""
    partitions: dict[str, dict[str, float]]
    """run → place → adjusted Rand index of its pathways and those of the first routed run of the same base"""


def compare(
    named: Sequence[tuple[str, Results]], partitions: Mapping[str, Mapping[str, Tensor]] | None = None
) -> Comparison:
    """Compare two or more results, each with the name of its run.

    The gap of a run is its validation loss minus that of the `dense` runs. The gap ratio is the mean gap of the
    `routed` runs over that of the `static` ones; if it is below 1, choosing by token beats the best fixed choice.

    partitions: of the runs whose model is at hand, by place, the pathway of each neuron [f].
    """
    if len(named) < 2:
        raise ValueError(f"compare: {len(named)} run given; it takes at least two")
    dense = [r for _, r in named if r.run.role == "dense"]
    runs = [_compared(name, r, dense) for name, r in named]
    agreement = partition_agreement({name: r.base.name for name, r in named}, partitions or {})
    return Comparison(runs, _gap_ratio(runs), _differences([r for _, r in named]), agreement)


def partition_agreement(
    bases: Mapping[str, str], partitions: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """The adjusted Rand index, run → place, of the pathways of each run and of the first run of the same base."""
    routed = [run for run, found in partitions.items() if found]
    if not routed:
        return {}
    first = routed[0]
    found = {}
    for run in routed[1:]:
        shared = [p for p, labels in partitions[run].items() if len(partitions[first].get(p, ())) == len(labels)]
        if bases[run] == bases[first] and shared:
            found[run] = {p: adjusted_rand_index(partitions[first][p], partitions[run][p]) for p in shared}
    return found


def _compared(name: str, r: Results, dense: list[Results]) -> ComparedRun:
    loss, compute = r.losses.model, r.compute
    gap = _gap(r, dense) if dense and r.run.role != "dense" else None
    return ComparedRun(
        run=name,
        role=r.run.role,
        seed=r.run.seed,
        tokens_trained=r.run.tokens_trained,
        nats=loss.nats,
        low=loss.low,
        high=loss.high,
        perplexity=loss.perplexity,
        gap=gap and gap.value,
        gap_low=gap and gap.low,
        gap_high=gap and gap.high,
        perplexity_ratio=gap and math.exp(gap.value),
        active_fraction=compute and compute.active_fraction,
        mlp_saved=compute and compute.mlp_saved,
        total_saved=compute and compute.total_saved,
        seconds=r.run.seconds,
        means={log_name(row): row.value for row in mean_rows(r.rows) if row.value is not None},
    )


class _Gap(NamedTuple):
    value: float
    low: float | None = None
    high: float | None = None


def _gap(r: Results, dense: list[Results]) -> _Gap:
    value = r.losses.model.nats - statistics.fmean(d.losses.model.nats for d in dense)
    mine, theirs = r.losses.by_document, [d.losses.by_document for d in dense]
    if mine is None or any(other is None or other.tokens != mine.tokens for other in theirs):
        return _Gap(value)
    mean = torch.tensor([other.nats for other in theirs if other is not None], dtype=torch.float64).mean(0)
    paired = paired_difference(torch.tensor(mine.nats, dtype=torch.float64), mean, torch.tensor(mine.tokens))
    return _Gap(value, paired.low, paired.high)


def _gap_ratio(runs: Sequence[ComparedRun]) -> float | None:
    gaps = {role: [r.gap for r in runs if r.role == role and r.gap is not None] for role in ("routed", "static")}
    if not all(gaps.values()) or statistics.fmean(gaps["static"]) <= 0:
        return None
    return statistics.fmean(gaps["routed"]) / statistics.fmean(gaps["static"])


def _differences(results: Sequence[Results]) -> dict[str, list[str] | list[int]]:
    found: dict[str, list[str] | list[int]] = {
        "base": sorted({r.base.name for r in results}),
        "data": sorted({r.data.name for r in results}),
        "tokens trained": sorted({r.run.tokens_trained for r in results}),
        "validation tokens": sorted({r.losses.model.tokens for r in results}),
    }
    return {what: values for what, values in found.items() if len(values) > 1}
