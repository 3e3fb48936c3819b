"""Shows runs side by side, as table, CSV and figure."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slms.measure.compare import ComparedRun, Comparison
from slms.measure.rows import Row, by_place
from slms.measure.schema import Results
from slms.models.place import in_order, short_names
from slms.report.artifacts import csv_text
from slms.report.palette import (
    COLOURS,
    GREY,
    MATCHED,
    PAGE,
    beside,
    caption,
    draw_rows,
    legend_above,
    look,
    place_ticks,
    styled,
)
from slms.report.tables import amount, interval, number, text_table
from slms.report.words import shorten

COLUMNS = ComparedRun._fields[:-1]
"""The columns of compare.csv before those of the metrics."""


def run_names(results: Sequence[Results], paths: Sequence[Path]) -> list[str]:
    """The name of each run; if it is not unique, with its role, seed or directory."""
    makers = (
        lambda r, path: r.run.name,
        lambda r, path: f"{r.run.name} {r.run.role}",
        lambda r, path: f"{r.run.name} {r.run.role} s{r.run.seed}",
        lambda r, path: f"{r.run.name} {path.parent.name if path.is_file() else path.name}",
    )
    for maker in makers:
        names = [maker(r, path) for r, path in zip(results, paths, strict=True)]
        if len(set(names)) == len(names):
            return names
    return [f"{name} #{i}" for i, name in enumerate(names, start=1)]


def compare_table(found: Comparison) -> str:
    """The comparison as text for the terminal."""
    head = ["run", "role", "nats", "ppl", "gap", "95 % interval", "ppl ratio", "active", "MLP", "model", "purity"]
    rows = []
    for r in found.runs:
        loss = number(r.nats, 4), number(r.perplexity)
        gap = number(r.gap, 4), interval(r.gap_low, r.gap_high, 4), number(r.perplexity_ratio, 4)
        shares = map(_whole, (r.active_fraction, r.mlp_saved, r.total_saved))
        rows.append([shorten(r.run), r.role, *loss, *gap, *shares, number(r.means.get("purity"), 2)])
    lines = [text_table(head, rows, left=2, indent="")]
    lines.append("gap: nats above the dense runs; MLP, model: FLOPs saved; purity: mean of the routed places")
    if found.gap_ratio is not None:
        lines.append(f"gap ratio: the routed gap is {found.gap_ratio:.2f} of the static control's")
    for run, of_place in found.partitions.items():
        mean = statistics.fmean(of_place.values())
        places = ", ".join(
            f"{name} {value:.2f}" for name, value in zip(short_names(list(of_place)), of_place.values(), strict=True)
        )
        lines += textwrap.wrap(
            f"pathways of {shorten(run)} against the first run's: adjusted Rand {mean:.2f} ({places})", 100
        )
    for what, values in found.differences.items():
        shown = [amount(value) if isinstance(value, int) else value for value in values]
        lines.append(f"note: the runs differ in {what}: {', '.join(shown)}")
    return "\n".join(lines)


def agreement_table(first: str, rows: Mapping[str, Sequence[Row]]) -> str:
    """How far each run's choices agree with those of the first, by place."""
    lines = [
        [shorten(run), name, number(r.value), number(r.control), f"{r.difference:+.3f}", interval(*_limits(r))]
        for run, of_run in rows.items()
        for r, name in zip(of_run, short_names([r.place for r in of_run]), strict=True)
    ]
    head = ["run", "place", "both execute", "independent", "difference", "95 % interval"]
    note = f"share of tokens × neurons that the run and {shorten(first)} both execute; independent: with equal loads"
    return f"{text_table(head, lines, left=2, indent='')}\n{note}"


def _limits(r: Row) -> tuple[float | None, float | None]:
    return r.difference_low, r.difference_high


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def compare_csv(runs: Sequence[ComparedRun]) -> str:
    """The comparison as CSV, one line per run: `COLUMNS`, then the mean of every metric that some run has."""
    metrics = list(dict.fromkeys(name for run in runs for name in run.means))
    return csv_text([*COLUMNS, *metrics], ([*run[:-1], *map(run.means.get, metrics)] for run in runs))


@styled
def compare_figure(runs: Sequence[ComparedRun], results: Sequence[Results]) -> Figure:
    """Draw loss with intervals, FLOPs saved, and purity by place, with one colour and marker per run."""
    high = 0.9 + 0.18 * len(runs)
    figure = Figure(figsize=(PAGE, high + 2.5))
    grid = figure.add_gridspec(2, 2, height_ratios=(high, 2.2), width_ratios=(1, 0.8))
    loss = figure.add_subplot(grid[0, 0])
    saved = figure.add_subplot(grid[0, 1], sharey=loss)
    purity = figure.add_subplot(grid[1, :])
    places = list(range(len(runs)))[::-1]  # the first run on top
    _loss_panel(loss, runs, places)
    _saved_panel(saved, runs, places)
    shown = in_order({place for r in results for place in r.places})
    for i, (r, run) in enumerate(zip(results, runs, strict=True)):
        rows = {shown.index(p) + beside(i, len(runs)): row for p, row in by_place(r.rows, "purity").items()}
        draw_rows(purity, list(rows), list(rows.values()), shorten(run.run), i)
    purity.set(title="c   Purity by place (marks as in a)", ylabel="share of H(token)")
    place_ticks(purity, shown, most=20)
    matched = f"; {MATCHED}" if any(row.control_sd is not None for r in results for row in r.rows) else ""
    note = f"bars: 95 % intervals over documents; dashed: mean of the dense runs{matched}"
    caption(figure, f"{len(runs)} runs beside each other", note)
    return figure


def _loss_panel(axes: Axes, runs: Sequence[ComparedRun], places: list[int]) -> None:
    for i, (run, y) in enumerate(zip(runs, places, strict=True)):
        colour, marker = look(i)
        if run.low is not None and run.high is not None:
            axes.hlines(y, run.low, run.high, color=colour, linewidth=2)
        axes.plot(run.nats, y, marker, color=colour, markersize=5)
    dense = [run.nats for run in runs if run.role == "dense"]
    if dense:
        axes.axvline(statistics.fmean(dense), color=GREY, ls="--", linewidth=0.6)
    axes.set(title="a   Validation loss", xlabel="nats per token")
    axes.set_yticks(places, [shorten(run.run) for run in runs])
    axes.set_ylim(-0.6, len(runs) - 0.4)


def _saved_panel(axes: Axes, runs: Sequence[ComparedRun], places: list[int]) -> None:
    for offset, colour, name in ((0.19, COLOURS[0], "mlp_saved"), (-0.19, COLOURS[2], "total_saved")):
        values = [100 * (getattr(run, name) or 0.0) for run in runs]
        label = "MLPs, router included" if name == "mlp_saved" else "whole model, head included"
        axes.barh([y + offset for y in places], values, 0.36, color=colour, label=label)
    axes.set(title="b   FLOPs saved", xlabel="% of the dense model's")
    axes.tick_params(axis="y", labelleft=False, length=0)
    legend_above(axes, 1)
