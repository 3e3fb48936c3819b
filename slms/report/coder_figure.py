"""`quality.png`: a coder beside its baselines, with intervals, and how often its latents are used.

Shapes: s latents.
"""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from slms.metrics.functional import Interval
from slms.report.palette import COLOURS, LABEL, PALE, TICK, dress, new_figure
from slms.report.sae import tells
from slms.sae.quality import Quality

BINS = 40


def coder_figure(results: Mapping[str, Quality], title: str, subtitle: str = "") -> Figure:
    """Panels: FVU, CE loss recovered, densities of latents; one colour a coder, 95 % intervals over documents."""
    figure = new_figure(15, 4.6)
    figure.text(0.02, 0.93, title, fontsize=15, fontweight="bold", parse_math=False)
    figure.text(0.02, 0.865, subtitle, fontsize=LABEL, color="#444444", parse_math=False)
    grid = figure.add_gridspec(1, 3, left=0.095, right=0.985, top=0.75, bottom=0.14, wspace=0.14)
    colours = dict(zip(results, COLOURS, strict=False))
    fvu, recovered, densities = (figure.add_subplot(grid[i]) for i in range(3))
    _estimates(fvu, {name: [q.fvu] for name, q in results.items()}, colours)
    dress(fvu, "Variance left unexplained (FVU)", "of the mean predictor's; lower is better")
    found = {name: [q.recovered[way] for way in q.recovered if tells(q, way)] for name, q in results.items()}
    _estimates(recovered, found, colours, names=False)
    dress(recovered, "Loss recovered (1 is all)", "share of what ablation costs: ● to zero, ○ to the mean")
    # Components of PCA are in use at every token.
    _densities(densities, {name: q for name, q in results.items() if not bool((q.density == 1).all())}, colours)
    dress(densities, "How often latents are used", "share of tokens (logarithmic)", "latents")
    for axes in (fvu, recovered):
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=PALE, linewidth=0.8)
    return figure


def _estimates(axes: Axes, rows: Mapping[str, Sequence[Interval]], colours: Mapping[str, str], names=True) -> None:
    """One line a coder, the first at the top: its estimates, each with its interval and its value."""
    for y, (name, estimates) in enumerate(rows.items()):
        for i, e in enumerate(estimates):
            at = y + 0.22 * (i - (len(estimates) - 1) / 2) * 2
            axes.hlines(at, e.low, e.high, color=colours[name], linewidth=3, alpha=0.6)
            face = colours[name] if i == 0 else "white"
            axes.plot(e.value, at, "o", color=colours[name], markerfacecolor=face, markersize=7)
            axes.annotate(f"{e.value:.3f}", (e.value, at), xytext=(0, 7), textcoords="offset points", ha="center",
                          fontsize=TICK)  # fmt: skip
        if not estimates:
            axes.annotate("ablating this site costs too little to tell", (0.02, y), fontsize=TICK, va="center",
                          xycoords=("axes fraction", "data"), color="#444444")  # fmt: skip
    axes.set_yticks(range(len(rows)), list(rows) if names else [""] * len(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if not any(rows.values()):
        axes.set_xticks([])
    axes.margins(x=0.12)


def _densities(axes: Axes, results: Mapping[str, Quality], colours: Mapping[str, str]) -> None:
    """One outline a coder over the logarithm of the density; latents never used stand in the legend."""
    logs = {name: q.density[q.density > 0].double().log10() for name, q in results.items()}
    lowest = min((float(log.min()) for log in logs.values() if len(log)), default=-1.0)
    edges = torch.linspace(min(lowest, -1.0), 0.0, BINS + 1, dtype=torch.float64)
    for name, log in logs.items():
        label = f"{name} ({results[name].dead:.1%} of {len(results[name].density):,} never)"
        axes.stairs(_counts(log, edges), edges.numpy(), color=colours[name], linewidth=1.8, label=label)
    decades = range(int(edges[0]), 1)
    axes.set_xticks(list(decades), [f"{10.0**d:g}" for d in decades])
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper left", fontsize=TICK, frameon=False)


def _counts(log: Tensor, edges: Tensor) -> list[float]:
    return torch.histogram(log.clamp(edges[0], edges[-1]), edges).hist.tolist()
