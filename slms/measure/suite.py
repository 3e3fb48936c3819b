"""Measures specialization across a scaling suite, and decides by a rule whether it rises.

The rule was written before the suite that it judges was measured:

1. The neurons of every MLP of each model are measured on the same text; each number is a mean over layers:
   AS           Gini coefficient of the contributions |a_i|·‖w_out,i‖ of a token's neurons;
   SI pos       specialization index against the part of speech, chance subtracted;
   SI semantic  the same against the semantic class;
   Q            modularity of the co-activation graph minus that of token-shuffled neurons. It is reported and not
                judged, because random weights reach it.
   A neuron counts as on at its own strongest tenth of the tokens, so that the rate is the same at every size.
2. The same numbers are measured for each run's architecture with random weights.
3. Larger models reach a lower loss, so that a number can follow either. A suite of runs with checkpoints tells them
   apart: its slope is that over log10 of the parameters without embeddings at equal loss, in a mixed model with
   deviations of sizes and of runs (`slms.metrics.trend.trend_given`). Beside it stands, with fewer assumptions, the
   slope at one loss: each run's number is interpolated to the loss that the most runs pass through, and a
   least-squares line goes through the means of the sizes. A suite of one model each has only the line over the models
   as they are.
4. A slope's 95 % interval is Student's at (sizes − 2) degrees of freedom, because runs and checkpoints of a size do not
   make more sizes lie on a line. The smallest slope that the design finds with a power of 80 % stands beside it.
5. Verdict: `rises` if the interval of the slope lies above 0 for the trained models and also for the difference
   trained − random, `falls` if both lie below 0, else `no trend`. Fewer than three sizes have no verdict. Each number
   is judged by itself at 95 %, so three independent numbers without a trend show at least one in 14 % of suites.

`no trend` is a result. It says that these models do not show one as large as the smallest that they could, not that
there is none.

Shapes: m models.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.passes import document_loss
from slms.measure.rows import MEAN, Row, mean_rows
from slms.measure.specialization import measure_units
from slms.measure.units import NeuronReader
from slms.metrics.trend import Trend, trend, trend_given

NUMBERS = {"AS": ("sparsity", "gini"), "SI pos": ("si", "pos"), "SI semantic": ("si", "semantic"), "Q": ("q", "")}
"""The numbers of the rule, with the metric and family of their rows."""
JUDGED = ("AS", "SI pos", "SI semantic")
AS_THEY_ARE, AT_EQUAL_LOSS, AT_ONE_LOSS = "as they are", "at equal loss", "at one loss"
"""The ways of step 3 to compare sizes."""


class SuiteModel(NamedTuple):
    """One model of a suite."""

    model: str
    run: str
    """the run that it is a checkpoint of; a model by itself is its own run"""
    parameters: int
    """number of parameters without embeddings"""
    total_parameters: int
    d_model: int
    n_layers: int
    nats: float
    """loss per token on the same text"""
    tokens: int
    rows: dict[str, Row]
    """by number, means over layers, with the null subtracted from Q too; the control has random weights"""


def parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Number of parameters without and with token and position embeddings (and an untied head)."""
    total = sum(p.numel() for p in model.parameters())
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = model.get_output_embeddings()
    tables += [] if head is None else [head.weight]
    return total - sum(table.numel() for table in {id(t): t for t in tables}.values()), total


def measure_numbers(
    name: str, model: PreTrainedModel, blocks: Blocks, batch_size: int = 16, n_nulls: int = 10
) -> dict[str, Row]:
    """Do step 1 of the rule for one model, trained or random."""
    if missing := {"pos", "semantic"} - set(blocks.label_names):
        raise ValueError(f"the text has no labels of the family {sorted(missing)[0]!r}, which the suite needs")
    reader = NeuronReader(model, blocks, name=name)
    measured = measure_units(reader, blocks, batch_size, ["pos", "semantic"], n_nulls=n_nulls, name=name)
    means = {row.key: _without_null(row) for row in mean_rows(measured.rows)}
    return {number: means.get((MEAN, *key), Row(MEAN, *key)) for number, key in NUMBERS.items()}


def describe(
    name: str,
    run: str,
    model: PreTrainedModel,
    blocks: Blocks,
    batch_size: int,
    numbers: dict[str, Row],
    random: dict[str, Row],
) -> SuiteModel:
    """Join a model's numbers with those of random weights, its size and its loss."""
    without, total = parameters(model)
    loss = document_loss(model, blocks, batch_size).compute()
    return SuiteModel(
        model=name,
        run=run,
        parameters=without,
        total_parameters=total,
        d_model=model.config.hidden_size,
        n_layers=model.config.num_hidden_layers,
        nats=loss.value,
        tokens=loss.n,
        rows={number: replace(row, control=random[number].value) for number, row in numbers.items()},
    )


def _without_null(row: Row) -> Row:
    """Subtract the null from a row of Q, which is measured with its null in it."""
    if row.metric != "q" or row.null_mean is None:
        return row
    value, low, high = (None if x is None else x - row.null_mean for x in (row.value, row.low, row.high))
    return replace(row, value=value, low=low, high=high)


class Verdict(NamedTuple):
    """The slopes of one number per decade of parameters, in one of the ways of step 3."""

    metric: str
    way: str
    slope: float
    low: float
    high: float
    detectable: float
    """the smallest slope that would be found with a power of 80 %"""
    difference_slope: float
    """slope of trained − random"""
    difference_low: float
    difference_high: float
    sizes: int
    verdict: str


def verdicts(models: Sequence[SuiteModel]) -> list[Verdict]:
    """Every slope; the first of each number is the one that the rule judges."""
    found = []
    for number in JUDGED:
        for way in (AT_EQUAL_LOSS, AT_ONE_LOSS) if has_checkpoints(models) else (AS_THEY_ARE,):
            trained, difference = (trend_of(models, number, way, minus_random=minus) for minus in (False, True))
            verdict = trained.verdict if trained.verdict == difference.verdict else "no trend"
            found.append(Verdict(number, way, *trained[:4], *difference[:3], trained.n, verdict))
    return found


def has_checkpoints(models: Sequence[SuiteModel]) -> bool:
    """Whether some run has several checkpoints, so that loss varies at equal size."""
    return len({m.run for m in models}) < len(models)


def trend_of(models: Sequence[SuiteModel], number: str, way: str, minus_random: bool = False) -> Trend:
    """Fit a number over log10 of the parameters in one way of step 3."""
    known = [m for m in models if m.rows[number].value is not None]
    x = torch.tensor([m.parameters for m in known], dtype=torch.float64).log10()
    y = torch.tensor([_value(m, number, minus_random) for m in known], dtype=torch.float64)
    if way == AT_EQUAL_LOSS:
        nats = torch.tensor([m.nats for m in known], dtype=torch.float64)
        return trend_given(x, nats, y, [m.run for m in known])
    points = list(zip(x.tolist(), y.tolist(), strict=True)) if way == AS_THEY_ARE else _at_one_loss(known, y.tolist())
    of_size: dict[float, list[float]] = {}
    for size, value in points:
        of_size.setdefault(size, []).append(value)
    means = [sum(values) / len(values) for values in of_size.values()]
    return trend(torch.tensor(list(of_size), dtype=torch.float64), torch.tensor(means, dtype=torch.float64))


def _value(model: SuiteModel, number: str, minus_random: bool) -> float:
    row = model.rows[number]
    assert row.value is not None
    return row.value - ((row.control or 0.0) if minus_random else 0.0)


def one_loss(models: Sequence[SuiteModel]) -> float:
    """The loss in nats that the most runs pass through between their checkpoints; of several, the middle one."""
    ranges = [(min(m.nats for m in run), max(m.nats for m in run)) for run in _runs(models).values()]
    edges = sorted(edge for ends in ranges for edge in ends)
    middles = [(low + high) / 2 for low, high in pairwise(edges)] or edges
    passing = [sum(low <= middle <= high for low, high in ranges) for middle in middles]
    best = [middle for middle, count in zip(middles, passing, strict=True) if count == max(passing)]
    return best[len(best) // 2]


def _at_one_loss(models: Sequence[SuiteModel], y: Sequence[float]) -> list[tuple[float, float]]:
    """Log10 of the parameters and the number interpolated to `one_loss`, of each run that passes through it."""
    value = {id(m): number for m, number in zip(models, y, strict=True)}
    target, points = one_loss(models), []
    for run in _runs(models).values():
        ordered = sorted(run, key=lambda m: m.nats)
        for below, above in pairwise(ordered):
            if below.nats <= target < above.nats:
                share = (target - below.nats) / (above.nats - below.nats)
                number = (1 - share) * value[id(below)] + share * value[id(above)]
                points.append((float(torch.tensor(float(below.parameters)).double().log10()), number))
    return points


def _runs(models: Sequence[SuiteModel]) -> dict[str, list[SuiteModel]]:
    runs: dict[str, list[SuiteModel]] = {}
    for m in models:
        runs.setdefault(m.run, []).append(m)
    return runs
