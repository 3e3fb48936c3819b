"""Which pathways write which features: from `slms.measure.attribution` to `features.json` and its figure.

Shapes: p pathways, s latents.
"""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slms.measure.attribution import LayerAttribution, main_pathways
from slms.measure.rows import finite
from slms.report.feature_schema import LayerPathways, PathwayFeatures, PathwayPart
from slms.report.palette import LABEL, TICK, TITLE, new_figure

SHOWN = 20
SATURATED = 0.9  # of the features' largest parts; the colours of the others tell them apart


def describe_layer_pathways(found: LayerAttribution, bound: float) -> LayerPathways:
    """One routed layer's pathways."""
    owner, c = main_pathways(found, bound), found.concentration
    pathways = []
    for p, load in enumerate(found.load.tolist()):
        mine = (owner == p).nonzero()[:, 0]
        best = mine[found.part[p, mine].argsort(descending=True, stable=True)][:SHOWN]
        pathways.append(PathwayFeatures(p, load, len(mine), best.tolist()))
    together = found.part.sum(0)
    return LayerPathways(
        layer=found.layer,
        concentration=c.value,
        null_mean=c.null_mean,
        null_sd=c.null_sd,
        z=finite(c.z),
        part=finite(together[together.isfinite()].median()) if together.isfinite().any() else None,
        pathways=pathways,
    )


def describe_pathway_parts(attributions: list[LayerAttribution], bound: float) -> dict[int, list[PathwayPart]]:
    """Feature → the pathway of each routed layer that brings most of its rise, where one does."""
    parts: dict[int, list[PathwayPart]] = {}
    for found in attributions:
        for latent, p in enumerate(main_pathways(found, bound).tolist()):
            if p >= 0:
                part, z, lift = (float(table[p, latent]) for table in (found.part, found.z, found.lift))
                written = PathwayPart(found.layer, p, round(part, 3), finite(round(z, 1)), round(lift, 2))
                parts.setdefault(latent, []).append(written)
    return parts


def attribution_figure(attributions: list[LayerAttribution], bound: float, title: str) -> Figure:
    """One panel a layer: each pathway's part of each feature's rise; features sorted by their pathway."""
    high = 0.17 * max(len(found.load) for found in attributions) + 1.0
    height = 0.7 + high * len(attributions)
    figure = new_figure(12.0, height)
    grid = figure.add_gridspec(len(attributions), 1, left=0.05, right=0.87, top=1 - 0.75 / height, bottom=0.55 / height,
                               hspace=0.75 / (high - 0.75))  # fmt: skip
    figure.text(0.02, 1 - 0.3 / height, title, fontsize=TITLE, fontweight="bold", parse_math=False)
    for i, found in enumerate(attributions):
        _panel(figure, figure.add_subplot(grid[i]), found, bound)
    return figure


def _panel(figure: Figure, axes: Axes, found: LayerAttribution, bound: float) -> None:
    owner, c = main_pathways(found, bound), found.concentration
    mine = (owner >= 0).nonzero()[:, 0]
    strength = found.part[owner[mine], mine]
    order = mine[torch.argsort(owner[mine].double() - strength / (strength.abs().max() + 1), stable=True)]
    # Without any written feature the panel still says so.
    shown = found.part[:, order] if len(order) else torch.zeros(len(found.load), 1)
    limit = float(strength.quantile(SATURATED)) if len(order) else 1.0
    image = axes.imshow(shown, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    counts = torch.bincount(owner[mine], minlength=len(found.load)).tolist()
    axes.set_yticks(range(len(counts)), [f"p{p}" for p in range(len(counts))], fontsize=7)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(counts)), [str(count) for count in counts], fontsize=7)
    right.tick_params(length=0)
    against = f"gathered in one pathway {c.value:.3f}; random groups {c.null_mean:.3f} ± {c.null_sd:.3f}, z {c.z:.1f}"
    axes.set_title(f"L{found.layer}: {len(order)} of {len(owner)} features written by one · {against}", loc="left",
                   fontsize=LABEL, parse_math=False)  # fmt: skip
    axes.set_xlabel("features, sorted by the pathway that writes them (right: how many)", fontsize=TICK)
    axes.tick_params(axis="x", labelsize=TICK)
    box = axes.get_position()
    bar = figure.colorbar(image, cax=figure.add_axes((0.925, box.y0, 0.012, box.height)), extend="both")
    bar.set_label("part of the feature's rise", fontsize=TICK)
    bar.ax.tick_params(labelsize=7)
