"""Rows, table and figure of specialization across a scaling suite, from `slms.measure.suite`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slms.measure.rows import COLUMNS, frame
from slms.measure.suite import NUMBERS, SuiteModel, Verdict, trend_of
from slms.metrics.functional.trend import FEWEST
from slms.report.palette import COLOURS, LEGEND_ROW, PAGE, RANDOM, caption, styled
from slms.report.tables import amount, interval, number, text_table

SUITE_COLUMNS = (*SuiteModel._fields[:-1], *COLUMNS)


def suite_rows(models: Sequence[SuiteModel]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of suite.csv, one for each model and number."""
    return ((*m[:-1], *astuple(row)) for m in models for row in m.rows.values())


def suite_table(models: Sequence[SuiteModel], verdicts: Sequence[Verdict]) -> str:
    """The numbers and verdicts as text for the terminal."""
    head = ["model", "params", "total", "nats", *(f"{name} ± 95 %" for name in NUMBERS)]
    rows = []
    for m in models:
        measured = [f"{number(row.value)} ± {number(row.half)}" for row in m.rows.values()]
        rows.append([m.model, amount(m.parameters), amount(m.total_parameters), number(m.nats), *measured])
        rows.append(["  random weights", "", "", "", *(f"{number(row.control)}        " for row in m.rows.values())])
    slopes = []
    for v in verdicts:
        difference = number(v.difference_slope), _interval(v.difference_low, v.difference_high)
        slopes.append([v.metric, number(v.slope), _interval(v.low, v.high), *difference, v.verdict])
    second = ["", "slope per decade", "95 % interval", "trained − random", "95 % interval", "verdict"]
    notes = [
        "  params: without embeddings; AS: Gini; SI: chance subtracted; Q: its null subtracted; means over layers",
        f"  verdict: the rule in slms/measure/suite.py, {len(models)} models",
    ]
    if len({m.parameters for m in models}) < FEWEST:
        notes.append(f"  a slope needs models of at least {FEWEST} sizes")
    return "\n".join([text_table(head, rows), "", text_table(second, slopes), *notes])


def _interval(low: float, high: float) -> str:
    return interval(low, high) if math.isfinite(low) else ""


@styled
def suite_figure(name: str, models: Sequence[SuiteModel], verdicts: Sequence[Verdict]) -> Figure:
    """Draw each number against parameters, trained and random, with the fitted line and the verdict."""
    figure = Figure(figsize=(PAGE, 5))
    for letter, axes, verdict in zip("abcd", figure.subplots(2, 2).flat, verdicts, strict=True):
        _panel(axes, models, verdict, letter)
    note = (
        f"{len(models)} models on the same {amount(models[0].tokens)} tokens; means over layers; "
        f"bars: 95 % intervals; {RANDOM}; line: least squares"
    )
    caption(figure, "Specialization against scale" + (f": {name}" if name else ""), note)
    return figure


_WHAT = {
    "AS": ("AS: inequality of the neurons' contributions", "Gini"),
    "SI pos": ("SI: part of speech", "share of H(class)"),
    "SI semantic": ("SI: semantic class", "share of H(class)"),
    "Q": ("Q − Q of token-shuffled neurons", "modularity"),
}
"""The title and unit of each panel."""


def _panel(axes: Axes, models: Sequence[SuiteModel], verdict: Verdict, letter: str) -> None:
    x = [m.parameters for m in models]
    found = frame(m.rows[verdict.metric] for m in models)
    axes.set_xscale("log")
    axes.vlines(x, found["low"], found["high"], color=COLOURS[0], linewidth=1.5)
    axes.plot(x, found["value"], "o", color=COLOURS[0])
    axes.plot(x, found["control"], "o", color=COLOURS[0], mfc="white", mew=0.7)
    line = trend_of(models, verdict.metric, minus_random=False)
    if line.n >= FEWEST:
        ends = [min(x), max(x)]
        fitted = (line.intercept + line.slope * torch.tensor(ends, dtype=torch.float64).log10()).tolist()
        axes.plot(ends, fitted, color=COLOURS[1], zorder=1.5)
    sizes = sorted(set(x))
    apart = [sizes[0]]
    for size in sizes[1:]:
        if size > apart[-1] * (sizes[-1] / sizes[0]) ** 0.13:  # of the axis, which a name takes
            apart.append(size)
    axes.set_xticks(sizes, [amount(n) if n in apart else "" for n in sizes])
    axes.minorticks_off()
    title, unit = _WHAT[verdict.metric]
    axes.set(xlabel="parameters without embeddings", ylabel=unit)
    axes.set_title(f"{letter}   {title}", pad=4 + LEGEND_ROW)
    slope = f"{verdict.slope:+.3f} a decade {_interval(verdict.low, verdict.high)}: {verdict.verdict}"
    slope = slope if math.isfinite(verdict.slope) else verdict.verdict
    axes.text(0, 1.02, slope, transform=axes.transAxes, color=COLOURS[1])
