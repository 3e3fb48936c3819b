"""Draws `frontier.png`: perplexity against FLOPs and against both measured speeds, one line per rule."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from slms.measure.frontier import BESIDE, DECODE, NEAR_DENSE, PREFILL, Frontier, by_rule, unbeaten
from slms.measure.rows import frame
from slms.report.dynamick import closing_line
from slms.report.palette import GREY, PAGE, caption, look, styled

FLOOR = 1e-3
"""A rise in perplexity below which points cannot be told apart; they are drawn on the lowest line."""


@styled
def frontier_figure(frontier: Frontier, title: str) -> Figure:
    """Draw perplexity over dense against the share of the MLPs' FLOPs and, if timed, against the measured speedups."""
    timed = any(p.timed for p in frontier.points)
    figure = Figure(figsize=(PAGE, 3.4))
    axes, *right = figure.subplots(1, 3 if timed else 1, sharey=True, squeeze=False)[0]
    axes.set(title="a   FLOPs", ylabel="perplexity above the dense model's")
    axes.set_xlabel("MLPs and routers (dense: 100 %)")
    _lines(axes, frontier, "mlp_share")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    titles = {DECODE: "b   Decoding speed", PREFILL: "c   Prompt speed"}
    for speed, (direction, heading) in zip(right, titles.items(), strict=False):
        speed.set(title=heading, xlabel="times as fast as dense")
        _lines(speed, frontier, "model_speedup", direction)
        speed.axvline(1, color=GREY, linewidth=0.6)
        best = [p for p in unbeaten(frontier, direction) if p is not frontier.dense]
        rises = [max(p.value("ratio") - 1, FLOOR) for p in best]
        xs = [p.value("model_speedup", direction) for p in best]
        speed.step([1, *xs], [FLOOR, *rises], where="post", color=GREY, ls=":", zorder=0, label="none is better")
    note = f"{closing_line(frontier)}\nbars: 95 % intervals over documents"
    caption(figure, title, f"{note}; speeds: on {frontier.device}" if timed and frontier.device not in note else note)
    figure.axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _lines(axes: Axes, frontier: Frontier, metric: str, family: str = "") -> None:
    for i, (name, group) in enumerate(by_rule(frontier.points)):
        points = sorted((p for p in group if math.isfinite(p.value(metric, family))), key=lambda p: p.value("density"))
        if not points:
            continue
        xs = [p.value(metric, family) for p in points]
        rise = (frame(p.row("ratio") for p in points)[["value", "low", "high"]] - 1).clip(lower=FLOOR)
        colour, marker = look(i)
        trained = points[0].subject in ("routed", BESIDE)
        shape = {"markersize": 5.5} if trained else {"markerfacecolor": "white", "markeredgewidth": 0.9}
        axes.plot(xs, rise["value"], marker, ls="-", color=colour, label=name, **shape)
        axes.vlines(xs, rise["low"], rise["high"], color=colour)
    axes.axhline(NEAR_DENSE - 1, color=GREY, ls="--", label="1 % above it")
    axes.set_yscale("log")
    axes.set_ylim(bottom=FLOOR * 0.9)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda y, _: f"≤ {100 * y:g} %" if y == FLOOR else f"{100 * y:,.6g} %")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())
