"""Specialization across a scaling suite: what is measured of each model, and the rule that says whether it rises.

The rule was written before any suite was measured:

1. Measured are the neurons of every MLP of each model on the same text, each number the mean over layers:
   AS           Gini coefficient of the contributions |a_i|·‖w_out,i‖ of a token's neurons;
   SI pos       specialization index against the part of speech, chance subtracted;
   SI semantic  the same against the semantic class;
   Q            modularity of the co-activation graph minus that of token-shuffled neurons.
   Neurons count as on at their own strongest tenth of the tokens, so that the rate is the same at every size.
2. The same is measured of each model with random weights in its place.
3. Each number is regressed on log10 of the parameters without embeddings, by least squares; the slope's 95 % interval
   is Student's at n − 2 degrees of freedom, so the scatter between models widens it. Models of one size (seeds; added
   with them) are one point, their mean: copies of a size do not make more sizes lie on a line.
4. Verdict: `rises` if the interval of the slope lies above 0 for the trained models and also for the difference
   trained − random, `falls` if both lie below 0, else `no trend`. Fewer than three models have no verdict. The numbers
   are judged each by itself at 95 %; four independent ones without any trend show at least one in 18 % of suites.

`no trend` is a result. It says that these models do not show one, not that there is none.

Shapes: m models.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.passes import document_loss
from slms.measure.specialization import Place, Progress, measure_units
from slms.measure.units import NeuronReader
from slms.metrics.functional.trend import FEWEST, Trend, trend
from slms.models.base import random_twin
from slms.report.artifacts import write_json
from slms.report.palette import COLOURS, GREY, LABEL, TICK, TITLE, dress, new_figure
from slms.report.tables import amount, interval, number, text_table

METRICS = ("AS", "SI pos", "SI semantic", "Q")


class Value(NamedTuple):
    """One number of one model."""

    value: float
    low: float
    """lower end of the mean of the layers' 95 % intervals, which is at least as wide as the interval of their mean"""
    high: float
    """upper end"""
    null: float
    """what chance gives and is subtracted already; 0 for AS, which has no chance level"""
    random: float
    """the same number of the same architecture with random weights"""


class Point(NamedTuple):
    """One model of a suite."""

    model: str
    parameters: int
    """without embeddings"""
    total_parameters: int
    d_model: int
    n_layers: int
    nats: float
    """loss per token on the same text"""
    tokens: int
    values: dict[str, Value]


def parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Number of parameters without and with token and position embeddings (and an untied head)."""
    total = sum(p.numel() for p in model.parameters())
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = model.get_output_embeddings()
    tables += [] if head is None else [head.weight]
    return total - sum(table.numel() for table in {id(t): t for t in tables}.values()), total


def measure_point(
    name: str,
    model: PreTrainedModel,
    blocks: Blocks,
    batch_size: int = 16,
    n_nulls: int = 10,
    progress: Progress = lambda items, what, n: items,
) -> Point:
    """Steps 1 and 2 of the rule for one model."""
    if missing := {"pos", "semantic"} - set(blocks.label_names):
        raise ValueError(f"the text has no labels of the family {sorted(missing)[0]!r}, which the suite needs")
    found = {}
    for kind, net in (("trained", model), ("random weights", random_twin(model))):

        def told(items: Iterable, what: str, n: int, kind: str = kind) -> Iterable:
            return progress(items, f"{name}, {kind}: {what}", n)

        reader = NeuronReader(net, blocks)
        places = measure_units(reader, blocks, batch_size, ["pos", "semantic"], n_nulls=n_nulls, progress=told).places
        found[kind] = {metric: _mean(places, metric) for metric in METRICS}
    values = {m: Value(*found["trained"][m], random=found["random weights"][m][0]) for m in METRICS}
    without, total = parameters(model)
    config = model.config
    loss = document_loss(model, blocks, batch_size).compute()
    return Point(name, without, total, config.hidden_size, config.num_hidden_layers, loss.value, loss.n, values)


def _mean(places: Sequence[Place], metric: str) -> tuple[float, float, float, float]:
    """Value, low, high and null of one number, averaged over layers."""
    rows = []
    for place in places:
        if metric == "AS":
            value, half = float(place.sparsity.value.gini), float(place.sparsity.half_width.gini)
            rows.append((value, value - half, value + half, 0.0))
        elif metric == "Q":
            q = place.graph
            if q is not None:
                rows.append((q.q - q.null_mean, q.low - q.null_mean, q.high - q.null_mean, q.null_mean))
        else:
            score = place.si[metric.removeprefix("SI ")]
            rows.append((score.value, score.low, score.high, score.null_mean))
    value, low, high, null = torch.tensor(rows, dtype=torch.float64).nanmean(0).tolist()
    return value, low, high, null


class Verdict(NamedTuple):
    """Steps 3 and 4 of the rule for one number; slopes are per decade of parameters."""

    metric: str
    slope: float
    low: float
    high: float
    difference_slope: float
    """of trained − random"""
    difference_low: float
    difference_high: float
    verdict: str


def judge(points: Sequence[Point]) -> list[Verdict]:
    """The verdict on each number."""
    verdicts = []
    for metric in METRICS:
        trained, difference = (_trend(points, metric, minus) for minus in (False, True))
        same = trained.verdict == difference.verdict
        verdict = trained.verdict if same else "no trend"
        verdicts.append(Verdict(metric, *trained[:3], *difference[:3], verdict))
    return verdicts


def _trend(points: Sequence[Point], metric: str, minus_random: bool) -> Trend:
    of_size: dict[int, list[float]] = {}
    for p in points:
        value = p.values[metric]
        of_size.setdefault(p.parameters, []).append(value.value - (value.random if minus_random else 0))
    x = torch.tensor(list(of_size), dtype=torch.float64).log10()
    return trend(x, torch.tensor([sum(y) / len(y) for y in of_size.values()], dtype=torch.float64))


def write_point(path: Path, point: Point, settings: dict) -> None:
    """Keep a model's numbers, with the settings they were measured under, so that a stopped suite goes on from them."""
    values = {metric: value._asdict() for metric, value in point.values.items()}
    write_json(path, {"settings": settings, **point._asdict(), "values": values})


def read_point(path: Path, settings: dict) -> Point | None:
    """What `write_point` kept; None where there is nothing whole, or it was measured under other settings."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("settings") != json.loads(json.dumps(settings)):
            return None
        numbers = {metric: {k: torch.nan if v is None else v for k, v in kept["values"][metric].items()}
                   for metric in METRICS}  # fmt: skip
        return Point(**{**kept, "values": {metric: Value(**row) for metric, row in numbers.items()}})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def suite_rows(points: Sequence[Point]) -> list[tuple]:
    """suite.csv: one row a model and number."""
    return [(*point[:7], metric, *value) for point in points for metric, value in point.values.items()]


SUITE_COLUMNS = (*Point._fields[:7], "metric", *Value._fields)


def suite_table(points: Sequence[Point], verdicts: Sequence[Verdict]) -> str:
    """For the terminal."""
    head = ["model", "params", "total", "nats", *(f"{metric} ± 95 %" for metric in METRICS)]
    rows = []
    for p in points:
        measured = [f"{number(v.value)} ± {number((v.high - v.low) / 2)}" for v in p.values.values()]
        rows.append([p.model, amount(p.parameters), amount(p.total_parameters), number(p.nats), *measured])
        rows.append(["  random weights", "", "", "", *(f"{number(v.random)}        " for v in p.values.values())])
    judged = [
        [v.metric, number(v.slope), _interval(v.low, v.high), number(v.difference_slope),
         _interval(v.difference_low, v.difference_high), v.verdict]
        for v in verdicts
    ]  # fmt: skip
    second = ["", "slope per decade", "95 % interval", "trained − random", "95 % interval", "verdict"]
    notes = [
        "  params: without embeddings; AS: Gini; SI: chance subtracted; Q: its null subtracted; means over layers",
        f"  verdict: the rule in slms/report/suite.py, {len(points)} models",
    ]
    if len({p.parameters for p in points}) < FEWEST:
        notes.append(f"  a slope needs models of at least {FEWEST} sizes")
    return "\n".join([text_table(head, rows), "", text_table(second, judged), *notes])


def _interval(low: float, high: float) -> str:
    return interval(low, high) if math.isfinite(low) else ""


def suite_figure(name: str, points: Sequence[Point], verdicts: Sequence[Verdict]) -> Figure:
    """Each number against parameters, trained and random, with the fitted line and the verdict."""
    figure = new_figure(12, 8)
    grid = figure.add_gridspec(2, 2, left=0.065, right=0.985, top=0.86, bottom=0.075, hspace=0.3, wspace=0.16)
    for i, verdict in enumerate(verdicts):
        _panel(figure.add_subplot(grid[i // 2, i % 2]), points, verdict)
    heading = "Specialization against scale" + (f": {name}" if name else "")
    figure.text(0.02, 0.955, heading, fontsize=TITLE + 2, fontweight="bold", parse_math=False)
    note = f"{len(points)} models on the same {amount(points[0].tokens)} tokens; means over layers with 95 % intervals"
    figure.text(0.02, 0.922, note, fontsize=LABEL, color="#444444", parse_math=False)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="upper right", bbox_to_anchor=(0.985, 0.985), fontsize=TICK, frameon=False, ncol=3
    )
    return figure


_WHAT = {
    "AS": "AS: Gini of the neurons' contributions",
    "SI pos": "SI: part of speech",
    "SI semantic": "SI: semantic class",
    "Q": "Q − Q of token-shuffled neurons",
}


def _panel(axes: Axes, points: Sequence[Point], verdict: Verdict) -> None:
    x = [p.parameters for p in points]
    values = [p.values[verdict.metric] for p in points]
    axes.set_xscale("log")
    axes.vlines(x, [v.low for v in values], [v.high for v in values], color=COLOURS[0], linewidth=2)
    axes.plot(x, [v.value for v in values], "o", color=COLOURS[0], markersize=7, label="trained")
    axes.plot(x, [v.random for v in values], "_", color=GREY, markersize=14, markeredgewidth=2, label="random weights")
    line = _trend(points, verdict.metric, minus_random=False)
    if line.n >= FEWEST:
        ends = [min(x), max(x)]
        fitted = (line.intercept + line.slope * torch.tensor(ends, dtype=torch.float64).log10()).tolist()
        axes.plot(ends, fitted, color=COLOURS[1], linewidth=1.2, label="least squares")
    sizes = sorted(set(x))
    axes.set_xticks(sizes, [amount(n) for n in sizes])
    axes.minorticks_off()
    dress(axes, _WHAT[verdict.metric], x="parameters without embeddings")
    slope = f"{verdict.slope:+.3f} a decade {_interval(verdict.low, verdict.high)}: {verdict.verdict}"
    slope = slope if math.isfinite(verdict.slope) else verdict.verdict
    axes.text(0.02, 0.97, slope, transform=axes.transAxes, va="top", fontsize=LABEL, color=COLOURS[1])
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.04 * (high - low), high + 0.14 * (high - low))
