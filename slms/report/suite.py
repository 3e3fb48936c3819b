"""Rows, table and figure of specialization across a scaling suite, from `slms.measure.suite`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from statistics import fmean
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slms.measure.rows import COLUMNS
from slms.measure.suite import AT_ONE_LOSS, JUDGED, SuiteModel, Verdict, has_checkpoints, one_loss, trend_of
from slms.metrics.trend import FEWEST
from slms.report.palette import COLOURS, GREY, LEGEND_ROW, MARKERS, PAGE, RANDOM, caption, styled
from slms.report.tables import amount, interval, number, text_table

SUITE_COLUMNS = (*SuiteModel._fields[:-1], *COLUMNS)


def suite_rows(models: Sequence[SuiteModel]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of suite.csv, one for each model and number."""
    return ((*m[:-1], *astuple(row)) for m in models for row in m.rows.values())


def suite_table(models: Sequence[SuiteModel], aside: Sequence[SuiteModel], verdicts: Sequence[Verdict]) -> str:
    """The numbers and verdicts as text for the terminal: of runs, the last checkpoint, and the mean of those of a size.

    aside: models that are shown and not judged.
    """
    numbers = list(models[0].rows)
    head = ["model", "params", "total", "nats", *numbers]
    rows = []
    for group in [*_by_size(models), *([m] for m in aside)]:
        name = group[0].model if len(group) == 1 else f"{len(group)} of width {group[0].d_model}"
        values = [number(_mean(m.rows[key].value for m in group)) for key in numbers]
        nats = number(fmean(m.nats for m in group))
        rows.append([name, amount(group[0].parameters), amount(group[0].total_parameters), nats, *values])
        rows.append(
            ["  random weights", "", "", "", *(number(_mean(m.rows[key].control for m in group)) for key in numbers)]
        )
    slopes = []
    for v in verdicts:
        way = f"{v.way} ({number(one_loss(models), 2)})" if v.way == AT_ONE_LOSS else v.way
        difference = number(v.difference_slope), _interval(v.difference_low, v.difference_high)
        trained = number(v.slope), _interval(v.low, v.high), number(v.detectable)
        slopes.append([v.metric, way, str(v.sizes), *trained, *difference, v.verdict])
    second = ["", "sizes", "n", "a decade", "95 % interval", "smallest", "− random", "95 % interval", "verdict"]
    notes = [
        "  params: without embeddings; AS: Gini; SI: chance subtracted; Q: its null subtracted; means over layers",
        "  a decade: slope per decade of parameters; smallest: the slope that would be found in 80 % of such suites",
        "  Q is not judged, because random weights reach it; the rule stands in slms/measure/suite.py",
    ]
    if len({m.parameters for m in models}) < FEWEST:
        notes.append(f"  a slope needs models of at least {FEWEST} sizes")
    return "\n".join([text_table(head, rows), "", text_table(second, slopes, left=2), *notes])


def _by_size(models: Sequence[SuiteModel]) -> list[list[SuiteModel]]:
    """The last checkpoint of each run, by number of parameters."""
    last = {m.run: m for m in sorted(models, key=lambda m: -m.nats)}
    sizes: dict[int, list[SuiteModel]] = {}
    for m in sorted(last.values(), key=lambda m: m.parameters):
        sizes.setdefault(m.parameters, []).append(m)
    return list(sizes.values())


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _values(models: Sequence[SuiteModel], what: str) -> list[float]:
    """A number of each model; NaN, which is not drawn, where it was not measured."""
    return [math.nan if (value := m.rows[what].value) is None else value for m in models]


def _interval(low: float, high: float) -> str:
    return interval(low, high) if math.isfinite(low) else ""


@styled
def suite_figure(
    name: str, models: Sequence[SuiteModel], aside: Sequence[SuiteModel], verdicts: Sequence[Verdict]
) -> Figure:
    """Draw each judged number against loss, if there are checkpoints, and against parameters with its slope.

    aside: models that are shown and not judged.
    """
    runs = has_checkpoints(models)
    figure = Figure(figsize=(PAGE, 4.6 if runs else 2.6))
    grid = figure.subplots(2 if runs else 1, len(JUDGED), squeeze=False)
    for column, what in enumerate(JUDGED):
        if runs:
            _over_loss(grid[0][column], models, aside, what, "abc"[column])
        judged = next(v for v in verdicts if v.metric == what)
        _over_size(grid[-1][column], models, aside, judged, "abcdef"[column + (3 if runs else 0)])
    if runs:
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), title="parameters")
    counted = f"{len({m.run for m in models})} runs, {len(models)} checkpoints" if runs else f"{len(models)} models"
    text = f"{counted} on the same {amount(models[0].tokens)} tokens"
    below = "d to f: runs carried along the fitted slope to the mean loss; line: the judged slope"
    note = f"{text}; means over layers; {RANDOM}; {below if runs else 'line: the judged slope'}"
    if aside:
        note += "; grey: " + ", ".join(m.model for m in aside) + ", not in the slope"
    caption(figure, "Specialization against scale" + (f": {name}" if name else ""), note)
    return figure


_WHAT = {
    "AS": ("AS: inequality", "Gini"),
    "SI pos": ("SI: part of speech", "share of H(class)"),
    "SI semantic": ("SI: semantic class", "share of H(class)"),
}
"""The title and unit of each panel."""


def _over_loss(axes: Axes, models: Sequence[SuiteModel], aside: Sequence[SuiteModel], what: str, letter: str) -> None:
    """Each run's number as its loss falls, darker for larger models."""
    sizes = sorted({m.parameters for m in models})
    shades = {size: colormaps["viridis_r"](0.1 + 0.9 * i / max(1, len(sizes) - 1)) for i, size in enumerate(sizes)}
    labelled = set()
    for run in dict.fromkeys(m.run for m in models):
        points = sorted((m for m in models if m.run == run), key=lambda m: -m.nats)
        size = points[0].parameters
        label = None if size in labelled else amount(size)
        labelled.add(size)
        axes.plot(
            [m.nats for m in points], _values(points, what), "o-", color=shades[size], label=label, markersize=2.5
        )
    axes.plot([m.nats for m in aside], _values(aside, what), MARKERS[1], color=GREY)
    axes.invert_xaxis()
    title, unit = _WHAT[what]
    axes.set(xlabel="nats per token (training: to the right)", ylabel=unit)
    axes.set_title(f"{letter}   {title}")


def _over_size(
    axes: Axes, models: Sequence[SuiteModel], aside: Sequence[SuiteModel], verdict: Verdict, letter: str
) -> None:
    """Each run's number against its parameters, moved along the fitted slope to the suite's mean loss."""
    what, line = verdict.metric, trend_of(models, verdict.metric, verdict.way)
    axes.set_xscale("log")
    moved: dict[str, list[tuple[int, float]]] = {}
    for m in models:
        value = m.rows[what].value
        if value is not None:
            moved.setdefault(m.run, []).append((m.parameters, value - line.given * (m.nats - line.centre)))
    axes.plot(
        [points[0][0] for points in moved.values()],
        [fmean(value for _, value in points) for points in moved.values()],
        "o",
        color=COLOURS[0],
    )
    random = {m.run: (m.parameters, m.rows[what].control) for m in models}
    axes.plot(*zip(*random.values(), strict=True), "o", color=COLOURS[0], mfc="white", mew=0.7)
    if not has_checkpoints(models):
        axes.plot([m.parameters for m in aside], _values(aside, what), MARKERS[1], color=GREY)
    sizes = sorted({m.parameters for m in models})
    if line.n >= FEWEST and math.isfinite(line.slope):
        ends = [sizes[0], sizes[-1]]
        fitted = (line.intercept + line.slope * torch.tensor(ends, dtype=torch.float64).log10()).tolist()
        axes.plot(ends, fitted, color=COLOURS[1], zorder=1.5)
    apart = [sizes[0]]
    for size in sizes[1:]:
        if size > apart[-1] * (sizes[-1] / sizes[0]) ** 0.2:  # of the axis, which a name takes
            apart.append(size)
    axes.set_xticks(sizes, [amount(n) if n in apart else "" for n in sizes])
    axes.minorticks_off()
    _, unit = _WHAT[what]
    axes.set(xlabel="parameters without embeddings", ylabel=unit)
    axes.set_title(f"{letter}   {what}: {verdict.verdict}", pad=4 + LEGEND_ROW)
    slope = f"{verdict.slope:+.3f} a decade {_interval(verdict.low, verdict.high)}"
    slope = slope if math.isfinite(verdict.slope) else ""
    axes.text(0, 1.02, slope, transform=axes.transAxes, color=COLOURS[1])
