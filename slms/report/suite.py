"""Specialization across a scaling suite: rows, table and figure of what `slms.measure.suite` found."""

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
from slms.report.palette import COLOURS, GREY, LABEL, TICK, TITLE, dress, new_figure
from slms.report.tables import amount, interval, number, text_table

SUITE_COLUMNS = (*SuiteModel._fields[:-1], *COLUMNS)


def suite_rows(models: Sequence[SuiteModel]) -> Iterator[tuple[Any, ...]]:
    """suite.csv: one row a model and number."""
    return ((*m[:-1], *astuple(row)) for m in models for row in m.rows.values())


def suite_table(models: Sequence[SuiteModel], verdicts: Sequence[Verdict]) -> str:
    """For the terminal."""
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


def suite_figure(name: str, models: Sequence[SuiteModel], verdicts: Sequence[Verdict]) -> Figure:
    """Each number against parameters, trained and random, with the fitted line and the verdict."""
    figure = new_figure(12, 8)
    grid = figure.add_gridspec(2, 2, left=0.065, right=0.985, top=0.86, bottom=0.075, hspace=0.3, wspace=0.16)
    for i, verdict in enumerate(verdicts):
        _panel(figure.add_subplot(grid[i // 2, i % 2]), models, verdict)
    heading = "Specialization against scale" + (f": {name}" if name else "")
    figure.text(0.02, 0.955, heading, fontsize=TITLE + 2, fontweight="bold", parse_math=False)
    note = f"{len(models)} models on the same {amount(models[0].tokens)} tokens; means over layers with 95 % intervals"
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


def _panel(axes: Axes, models: Sequence[SuiteModel], verdict: Verdict) -> None:
    x = [m.parameters for m in models]
    found = frame(m.rows[verdict.metric] for m in models)
    axes.set_xscale("log")
    axes.vlines(x, found["low"], found["high"], color=COLOURS[0], linewidth=2)
    axes.plot(x, found["value"], "o", color=COLOURS[0], markersize=7, label="trained")
    axes.plot(x, found["control"], "_", color=GREY, markersize=14, markeredgewidth=2, label="random weights")
    line = trend_of(models, verdict.metric, minus_random=False)
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
