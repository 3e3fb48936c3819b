"""`quality.png`: a coder beside its baselines, with intervals, and how often its latents are used.

Shapes: s latents.
"""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from slms.metrics.functional import Interval
from slms.report.palette import COLOURS, GREY, PAGE, caption, legend_above, styled
from slms.report.sae import tells
from slms.sae.quality import Quality

BINS = 40


@styled
def coder_figure(results: Mapping[str, Quality], title: str, subtitle: str = "") -> Figure:
    """Draw FVU, CE loss recovered and densities of latents; one colour per coder, 95 % intervals over documents."""
    figure = Figure(figsize=(PAGE, 2.9 + 0.3 * len(results)))
    grid = figure.add_gridspec(2, 2, height_ratios=(0.4 + 0.3 * len(results), 1.6))
    fvu, recovered = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    densities = figure.add_subplot(grid[1, :])
    colours = dict(zip(results, COLOURS, strict=False))
    _estimates(fvu, {name: [q.fvu] for name, q in results.items()}, colours)
    fvu.set(title="a   Variance left unexplained (FVU)", xlabel="share of the mean predictor's; lower is better")
    found = {name: [q.recovered[way] for way in q.recovered if tells(q, way)] for name, q in results.items()}
    _estimates(recovered, found, colours, names=False)
    recovered.set(title="b   Loss recovered", xlabel="share of the cost of ablation to ● zero, ○ mean")
    # Components of PCA are in use at every token.
    _densities(densities, {name: q for name, q in results.items() if not bool((q.density == 1).all())}, colours)
    densities.set(title="c   How often latents are used", xlabel="share of tokens (logarithmic)", ylabel="latents")
    legend_above(densities, 2)
    caption(figure, title, "; ".join(filter(None, (subtitle, "bars: 95 % intervals over documents"))))
    return figure


def _estimates(axes: Axes, rows: Mapping[str, Sequence[Interval]], colours: Mapping[str, str], names=True) -> None:
    """Draw one line per coder, the first at the top: its estimates, each with its interval and its value."""
    for y, (name, estimates) in enumerate(rows.items()):
        for i, e in enumerate(estimates):
            at = y + 0.22 * (i - (len(estimates) - 1) / 2) * 2
            axes.hlines(at, e.low, e.high, color=colours[name], linewidth=2, alpha=0.6)
            face = colours[name] if i == 0 else "white"
            axes.plot(e.value, at, "o", color=colours[name], mfc=face)
            axes.annotate(f"{e.value:.3f}", (e.high, at), xytext=(4, 0), textcoords="offset points", va="center")
        if not estimates:
            said, across = "ablating this site costs too little to tell", ("axes fraction", "data")
            axes.annotate(said, (0.02, y), xycoords=across, va="center", color=GREY)
    axes.set_yticks(range(len(rows)), list(rows) if names else [""] * len(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if not any(rows.values()):
        axes.set_xticks([])
    axes.margins(x=0.15)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x")


def _densities(axes: Axes, results: Mapping[str, Quality], colours: Mapping[str, str]) -> None:
    """Draw one outline per coder over the log density of its latents; the legend counts latents never used."""
    logs = {name: q.density[q.density > 0].double().log10() for name, q in results.items()}
    lowest = min((float(log.min()) for log in logs.values() if len(log)), default=-1.0)
    edges = torch.linspace(min(lowest, -1.0), 0.0, BINS + 1, dtype=torch.float64)
    for name, log in logs.items():
        label = f"{name} ({results[name].dead:.1%} of {len(results[name].density):,} never)"
        axes.stairs(_counts(log, edges), edges.numpy(), color=colours[name], linewidth=1.2, label=label)
    decades = range(int(edges[0]), 1)
    axes.set_xticks(list(decades), [f"{10.0**d:g}" for d in decades])


def _counts(log: Tensor, edges: Tensor) -> list[float]:
    return torch.histogram(log.clamp(edges[0], edges[-1]), edges).hist.tolist()
