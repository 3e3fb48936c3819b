"""Runs side by side: table, CSV and figure; with the controls present, how much of the static control's gap is left."""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slms.files import write_atomic
from slms.measure.schema import Results
from slms.metrics.functional.intervals import Interval, paired_difference
from slms.report.palette import COLOURS, GREY, MARKERS, TICK, dress, new_figure, write_figure
from slms.report.reading import shorten
from slms.report.results import read_results
from slms.report.tables import amount, interval, number, text_table


class ComparedRun(NamedTuple):
    """One line of the comparison. Means run over routed layers; gaps are against the mean of the dense runs."""

    run: str
    role: str
    seed: int | None
    tokens_trained: int
    nats: float
    low: float | None
    high: float | None
    perplexity: float
    gap: float | None
    """nats above the dense runs of this comparison (the base fine-tuned on the same tokens)"""
    gap_low: float | None
    """95 % interval over documents, paired; null where the runs were not measured on the same documents"""
    gap_high: float | None
    perplexity_ratio: float | None
    active_fraction: float | None
    mlp_saved: float | None
    total_saved: float | None
    purity: float | None
    purity_z: float | None
    """the lowest of the layers"""
    utilization: float | None
    seconds: float


class Comparison(NamedTuple):
    runs: list[ComparedRun]
    gap_ratio: float | None
    """mean routed gap / mean static gap, where dense, static and routed runs are all present"""
    warnings: list[str]
    """what makes the runs hard to compare: other data, another base, other token counts"""
    table: str
    csv: str
    figure: Figure


def compare(directories: Sequence[Path | str]) -> Comparison:
    """Read the results of two or more run directories (or results files) and put them side by side.

    The gap of a run is its validation loss minus that of the `dense` runs among them; the gap ratio is the mean gap of
    the `routed` runs over that of the `static` ones: below 1, choosing by token beats the best fixed choice.
    """
    if len(directories) < 2:
        raise ValueError(f"compare: {len(directories)} run given; it takes at least two")
    results = [read_results(path) for path in directories]
    dense = [r for r in results if r.run.role == "dense"]
    names = _names(results, [Path(path) for path in directories])
    runs = [_row(name, r, dense) for name, r in zip(names, results, strict=True)]
    ratio = _gap_ratio(runs)
    warnings = _warnings(results)
    return Comparison(runs, ratio, warnings, _table(runs, ratio, warnings), _csv(runs), _figure(runs, results))


def write_comparison(comparison: Comparison, directory: Path | str) -> list[Path]:
    """Write `compare.csv` and `compare.png` into `directory`; returns their paths."""
    directory = Path(directory)
    return [
        write_atomic(directory / "compare.csv", comparison.csv),
        write_figure(directory / "compare.png", comparison.figure),
    ]


def _names(results: list[Results], paths: list[Path]) -> list[str]:
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


def _row(name: str, r: Results, dense: list[Results]) -> ComparedRun:
    loss, compute = r.losses.model, r.compute
    gap = _gap(r, dense) if dense and r.run.role != "dense" else None
    purities = [layer.purity.value for layer in r.layers if layer.purity.value is not None]
    zs = [layer.purity.z for layer in r.layers if layer.purity.z is not None]
    used = [layer.utilization.value for layer in r.layers if layer.utilization.value is not None]
    return ComparedRun(
        name, r.run.role, r.run.seed, r.run.tokens_trained, loss.nats, loss.low, loss.high, loss.perplexity,
        gap.value if gap else None, gap.low if gap else None, gap.high if gap else None,
        float(torch.tensor(gap.value, dtype=torch.float64).exp()) if gap else None,
        compute.active_fraction if compute else None, compute.mlp_saved if compute else None,
        compute.total_saved if compute else None, statistics.fmean(purities) if purities else None,
        min(zs, default=None), statistics.fmean(used) if used else None, r.run.seconds,
    )  # fmt: skip


class _Gap(NamedTuple):
    value: float
    low: float | None
    high: float | None


def _gap(r: Results, dense: list[Results]) -> _Gap:
    value = r.losses.model.nats - statistics.fmean(d.losses.model.nats for d in dense)
    mine, theirs = r.losses.by_document, [d.losses.by_document for d in dense]
    if mine is None or any(other is None or other.tokens != mine.tokens for other in theirs):
        return _Gap(value, None, None)
    mean = torch.tensor([other.nats for other in theirs if other is not None], dtype=torch.float64).mean(0)
    paired: Interval = paired_difference(torch.tensor(mine.nats, dtype=torch.float64), mean, torch.tensor(mine.tokens))
    return _Gap(value, paired.low, paired.high)


def _gap_ratio(runs: list[ComparedRun]) -> float | None:
    gaps = {role: [r.gap for r in runs if r.role == role and r.gap is not None] for role in ("routed", "static")}
    if not all(gaps.values()) or statistics.fmean(gaps["static"]) <= 0:
        return None
    return statistics.fmean(gaps["routed"]) / statistics.fmean(gaps["static"])


def _warnings(results: list[Results]) -> list[str]:
    facts = {
        "base": {r.base.name for r in results},
        "data": {r.data.name for r in results},
        "tokens trained": {amount(r.run.tokens_trained) for r in results},
        "validation tokens": {amount(r.losses.model.tokens) for r in results},
    }
    return [f"the runs differ in {fact}: {', '.join(sorted(found))}" for fact, found in facts.items() if len(found) > 1]


def _table(runs: list[ComparedRun], ratio: float | None, warnings: list[str]) -> str:
    head = ["run", "role", "nats", "ppl", "gap", "95 % interval", "ppl ratio", "active", "MLP", "model", "purity"]
    rows = [
        [
            shorten(r.run), r.role, number(r.nats, 4), number(r.perplexity),
            number(r.gap, 4), interval(r.gap_low, r.gap_high, 4), number(r.perplexity_ratio, 4),
            _whole(r.active_fraction), _whole(r.mlp_saved), _whole(r.total_saved), number(r.purity, 2),
        ]
        for r in runs
    ]  # fmt: skip
    lines = [text_table(head, rows, left=2, indent="")]
    lines.append("gap: nats above the dense runs; MLP, model: FLOPs saved; purity: mean of the routed layers")
    if ratio is not None:
        lines.append(f"gap ratio: the routed gap is {ratio:.2f} of the static control's")
    return "\n".join(lines + [f"note: {warning}" for warning in warnings])


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _csv(runs: list[ComparedRun]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(ComparedRun._fields)
    writer.writerows(["" if value is None else value for value in run] for run in runs)
    return buffer.getvalue()


def _figure(runs: list[ComparedRun], results: list[Results]) -> Figure:
    """Loss with intervals, FLOPs saved, and purity by layer, one colour and marker a run."""
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
    for r, name, (colour, marker) in zip(results, [run.run for run in runs], styles, strict=True):
        values = {layer.layer: layer.purity.value for layer in r.layers if layer.purity.value is not None}
        for layer in r.layers:
            if layer.purity.low is not None and layer.purity.high is not None:
                purity.vlines(layer.layer, layer.purity.low, layer.purity.high, color=colour, linewidth=2)
        if values:
            purity.plot(list(values), list(values.values()), marker, ls="-", color=colour, label=shorten(name))
    dress(purity, "Purity by layer (95 % intervals)", x="layer")
    purity.xaxis.set_major_locator(MaxNLocator(integer=True))
    if purity.get_legend_handles_labels()[0]:
        low, high = purity.get_ylim()
        purity.set_ylim(low, high + (0.09 * len(runs) + 0.05) * (high - low))
        purity.legend(fontsize=TICK, frameon=False, loc="upper left")
    return figure


def _loss_panel(axes: Axes, runs: list[ComparedRun], places: list[int], styles: list[tuple[str, str]]) -> None:
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


def _saved_panel(axes: Axes, runs: list[ComparedRun], places: list[int]) -> None:
    for offset, colour, name in ((0.19, COLOURS[0], "mlp_saved"), (-0.19, COLOURS[4], "total_saved")):
        values = [100 * (getattr(run, name) or 0.0) for run in runs]
        label = "MLPs, router included" if name == "mlp_saved" else "whole model, head included"
        axes.barh([y + offset for y in places], values, 0.36, color=colour, label=label)
    dress(axes, "FLOPs saved", x="%")
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(runs) + 0.5)  # as the loss panel beside it; the legend takes the top
    axes.legend(fontsize=TICK, frameon=False, loc="upper right", ncol=1)
