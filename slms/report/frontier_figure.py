"""`frontier.png`: perplexity against FLOPs and against measured speed, one line a rule."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from slms.report.frontier import FREE, Frontier, Point, closing_line
from slms.report.palette import COLOURS, GREY, LABEL, MARKERS, TICK, dress, new_figure

CEILING = 2.0
"""Perplexity ratio above which a point is drawn at the edge: what is that bad is not compared."""


def frontier_figure(frontier: Frontier, title: str) -> Figure:
    """Panels: perplexity over dense against the share of the MLPs' FLOPs; against the speedup of decoding, if timed."""
    timed = any(p.decode for p in frontier.points)
    figure = new_figure(15 if timed else 8.5, 7)
    figure.text(0.045 if timed else 0.08, 0.955, title, fontsize=15, fontweight="bold", parse_math=False)
    figure.text(0.045 if timed else 0.08, 0.92, closing_line(frontier), fontsize=LABEL, color="#444444", wrap=True)
    grid = figure.add_gridspec(1, 2 if timed else 1, left=0.05 if timed else 0.1, right=0.985, top=0.85, bottom=0.2)
    top = min(CEILING, max(FREE + 0.01, *(p.ratio.high for p in frontier.points)))
    axes = figure.add_subplot(grid[0])
    dress(axes, "Quality and FLOPs", "FLOPs of the MLPs, share of dense (routers and predictors included)",
          "perplexity over the dense model's")  # fmt: skip
    _lines(axes, frontier, lambda p: p.mlp_flops / frontier.mlp_flops, top)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    if timed:
        right = figure.add_subplot(grid[1], sharey=axes)
        dress(right, f"Quality and measured speed ({frontier.device})", "decoding, whole model: times as fast as dense")
        _lines(right, frontier, lambda p: p.decode.model if p.decode else None, top)
        right.axvline(1, color=GREY, linewidth=1)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=min(6, len(labels)), fontsize=TICK, frameon=False)
    return figure


def _lines(axes: Axes, frontier: Frontier, place: Callable[[Point], float | None], top: float) -> None:
    names = list(dict.fromkeys(p.name for p in frontier.points))
    for i, name in enumerate(names):
        points = sorted((p for p in frontier.points if p.name == name), key=lambda p: p.density)
        found = [(x, p) for p in points if (x := place(p)) is not None]
        if not found:
            continue
        xs = [x for x, _ in found]
        ys = [min(p.ratio.value, top) for _, p in found]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
        size = 11 if found[0][1].subject == "routed" else 6
        axes.plot(xs, ys, marker, linestyle="-", linewidth=1.2, markersize=size, color=colour, label=name)
        for x, p in found:
            if p.ratio.value <= top:
                axes.vlines(x, p.ratio.low, min(p.ratio.high, top), color=colour, linewidth=1.5)
    axes.axhline(1, color=GREY, linewidth=1)
    axes.axhline(FREE, color=GREY, linewidth=1, linestyle="--", label="1 % more perplexity")
    axes.set_ylim(top=top + 0.02 * (top - 1))
