"""`frontier.png`: perplexity against FLOPs and against measured speed, one line a rule."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from slms.measure.frontier import NEAR_DENSE, Frontier, Point
from slms.report.dynamick import closing_line
from slms.report.palette import COLOURS, GREY, LABEL, MARKERS, TICK, dress, new_figure

FLOOR = 1e-3
"""A rise in perplexity below which nothing can be told apart; such points stand on the lowest line."""


def frontier_figure(frontier: Frontier, title: str) -> Figure:
    """Panels: perplexity over dense against the share of the MLPs' FLOPs; against the speedup of decoding, if timed."""
    timed = any(p.decode for p in frontier.points)
    figure = new_figure(15 if timed else 8.5, 7)
    figure.text(0.06 if timed else 0.1, 0.955, title, fontsize=15, fontweight="bold", parse_math=False)
    figure.text(0.06 if timed else 0.1, 0.92, closing_line(frontier), fontsize=LABEL, color="#444444", wrap=True)
    grid = figure.add_gridspec(1, 2 if timed else 1, left=0.065 if timed else 0.12, right=0.985, top=0.85, bottom=0.2)
    axes = figure.add_subplot(grid[0])
    dress(axes, "Quality and FLOPs", "FLOPs of the MLPs, share of dense (routers and predictors included)",
          "more perplexity than the dense model")  # fmt: skip
    _lines(axes, frontier, lambda p: p.mlp_flops / frontier.mlp_flops)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    if timed:
        right = figure.add_subplot(grid[1], sharey=axes)
        dress(right, f"Quality and measured speed ({frontier.device})", "decoding, whole model: times as fast as dense")
        _lines(right, frontier, lambda p: p.decode.model if p.decode else None)
        right.axvline(1, color=GREY, linewidth=1)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=min(6, len(labels)), fontsize=TICK, frameon=False)
    return figure


def _lines(axes: Axes, frontier: Frontier, place: Callable[[Point], float | None]) -> None:
    names = list(dict.fromkeys(p.name for p in frontier.points))
    for i, name in enumerate(names):
        points = sorted((p for p in frontier.points if p.name == name), key=lambda p: p.density)
        found = [(x, p) for p in points if (x := place(p)) is not None]
        if not found:
            continue
        xs = [x for x, _ in found]
        ys = [_rise(p.ratio.value) for _, p in found]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
        size = 11 if found[0][1].subject == "routed" else 6
        axes.plot(xs, ys, marker, linestyle="-", linewidth=1.2, markersize=size, color=colour, label=name)
        for x, p in found:
            axes.vlines(x, _rise(p.ratio.low), _rise(p.ratio.high), color=colour, linewidth=1.5)
    axes.axhline(_rise(NEAR_DENSE), color=GREY, linewidth=1.2, linestyle="--", label="1 % more perplexity")
    axes.set_yscale("log")
    axes.set_ylim(bottom=FLOOR * 0.9)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda y, _: f"≤ {100 * y:g} %" if y == FLOOR else f"{100 * y:,.6g} %")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())


def _rise(ratio: float) -> float:
    return max(ratio - 1, FLOOR)
