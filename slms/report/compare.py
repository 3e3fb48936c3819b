"""Runs side by side: table, CSV and figure."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slms.measure.compare import ComparedRun, Comparison
from slms.measure.rows import by_place
from slms.measure.schema import Results
from slms.models.place import in_order
from slms.report.artifacts import csv_text
from slms.report.palette import COLOURS, GREY, MARKERS, TICK, dress, new_figure, place_ticks
from slms.report.tables import amount, interval, number, text_table
from slms.report.words import shorten

COLUMNS = ComparedRun._fields[:-1]
"""Of compare.csv, before those of the metrics."""


def run_names(results: Sequence[Results], paths: Sequence[Path]) -> list[str]:
    """The run's name; where that is not unique its role, seed or directory too."""
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
    """For the terminal."""
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
    for what, values in found.differences.items():
        shown = [amount(value) if isinstance(value, int) else value for value in values]
        lines.append(f"note: the runs differ in {what}: {', '.join(shown)}")
    return "\n".join(lines)


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def compare_csv(runs: Sequence[ComparedRun]) -> str:
    """One line a run: `COLUMNS`, then the mean of every metric that some run has."""
    metrics = list(dict.fromkeys(name for run in runs for name in run.means))
    return csv_text([*COLUMNS, *metrics], ([*run[:-1], *map(run.means.get, metrics)] for run in runs))


def compare_figure(runs: Sequence[ComparedRun], results: Sequence[Results]) -> Figure:
    """Loss with intervals, FLOPs saved, and purity by place, one colour and marker a run."""
    height = max(4.2, 1.6 + 0.42 * len(runs))
    figure = new_figure(16, height)
    grid = figure.add_gridspec(
        1, 3, left=0.18, right=0.985, top=1 - 0.5 / height, bottom=0.75 / height, wspace=0.16, width_ratios=(1, 0.7, 1)
    )
    loss, saved, purity = (figure.add_subplot(grid[0, i]) for i in range(3))
    places = list(range(len(runs)))[::-1]  # the first run on top
    styles = [(COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]) for i in range(len(runs))]
    _loss_panel(loss, runs, places, styles)
    _saved_panel(saved, runs, places)
    shown = in_order({place for r in results for place in r.places})
    for r, name, (colour, marker) in zip(results, [run.run for run in runs], styles, strict=True):
        found = {shown.index(place): row for place, row in by_place(r.rows, "purity").items() if row.value is not None}
        for x, row in found.items():
            if row.low is not None and row.high is not None:
                purity.vlines(x, row.low, row.high, color=colour, linewidth=2)
        if found:
            values = [row.value for row in found.values() if row.value is not None]
            purity.plot(list(found), values, marker, ls="-", color=colour, label=shorten(name))
    dress(purity, "Purity by place (95 % intervals)")
    place_ticks(purity, shown)
    if purity.get_legend_handles_labels()[0]:
        low, high = purity.get_ylim()
        purity.set_ylim(low, high + (0.09 * len(runs) + 0.05) * (high - low))
        purity.legend(fontsize=TICK, frameon=False, loc="upper left")
    return figure


def _loss_panel(axes: Axes, runs: Sequence[ComparedRun], places: list[int], styles: list[tuple[str, str]]) -> None:
    for run, y, (colour, marker) in zip(runs, places, styles, strict=True):
        if run.low is not None and run.high is not None:
            axes.hlines(y, run.low, run.high, color=colour, linewidth=3)
        axes.plot(run.nats, y, marker, color=colour, markersize=8)
    dense = [run.nats for run in runs if run.role == "dense"]
    if dense:
        axes.axvline(statistics.fmean(dense), color=GREY, linestyle="--", linewidth=1)
    dress(axes, "Validation loss (95 % intervals; dashed: dense)", x="nats per token")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_yticks(places, [shorten(run.run) for run in runs], fontsize=TICK, parse_math=False)
    axes.set_ylim(-0.6, len(runs) + 0.5)


def _saved_panel(axes: Axes, runs: Sequence[ComparedRun], places: list[int]) -> None:
    for offset, colour, name in ((0.19, COLOURS[0], "mlp_saved"), (-0.19, COLOURS[4], "total_saved")):
        values = [100 * (getattr(run, name) or 0.0) for run in runs]
        label = "MLPs, router included" if name == "mlp_saved" else "whole model, head included"
        axes.barh([y + offset for y in places], values, 0.36, color=colour, label=label)
    dress(axes, "FLOPs saved", x="%")
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(runs) + 0.5)  # as the loss panel beside it; the legend takes the top
    axes.legend(fontsize=TICK, frameon=False, loc="upper right", ncol=1)
