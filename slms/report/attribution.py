"""Describes which pathways write which features, from `slms.measure.attribution`, for `features.json` and its figure.

Shapes: p pathways, s latents.
"""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slms.measure.attribution import LayerAttribution, main_pathways
from slms.measure.rows import finite
from slms.report.feature_schema import LayerPathways, PathwayFeatures, PathwayPart
from slms.report.palette import PAGE, caption, styled

SHOWN = 20
SATURATED = 0.9  # of the features' largest parts; the colours of the others tell them apart


def describe_layer_pathways(found: LayerAttribution, bound: float) -> LayerPathways:
    """Describe the pathways of one routed layer."""
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
    """Feature → for each routed layer, the pathway that brings most of the feature's rise, if one does."""
    parts: dict[int, list[PathwayPart]] = {}
    for found in attributions:
        for latent, p in enumerate(main_pathways(found, bound).tolist()):
            if p >= 0:
                part, z, lift = (float(table[p, latent]) for table in (found.part, found.z, found.lift))
                written = PathwayPart(found.layer, p, round(part, 3), finite(round(z, 1)), round(lift, 2))
                parts.setdefault(latent, []).append(written)
    return parts


@styled
def attribution_figure(attributions: list[LayerAttribution], bound: float, title: str) -> Figure:
    """Draw each pathway's part of each feature's rise, one panel per layer, features sorted by their pathway."""
    high = 0.5 + min(2.4, 0.12 * max(len(found.load) for found in attributions))
    figure = Figure(figsize=(PAGE, 0.6 + high * len(attributions)))
    for axes, found in zip(figure.subplots(len(attributions), 1, squeeze=False)[:, 0], attributions, strict=True):
        _panel(figure, axes, found, bound)
    axes.set_xlabel("features, sorted by the pathway that writes them")
    note = "right: how many features the pathway writes; ±: 2 sd of random groups of neurons of the pathways' sizes"
    caption(figure, title, note)
    return figure


def _panel(figure: Figure, axes: Axes, found: LayerAttribution, bound: float) -> None:
    owner, c = main_pathways(found, bound), found.concentration
    mine = (owner >= 0).nonzero()[:, 0]
    strength = found.part[owner[mine], mine]
    order = mine[torch.argsort(owner[mine].double() - strength / (strength.abs().max() + 1), stable=True)]
    # Without any written feature the panel still says so.
    shown = found.part[:, order] if len(order) else torch.zeros(len(found.load), 1)
    limit = float(strength.quantile(SATURATED)) if len(order) else 1.0
    image = axes.imshow(shown.numpy(), cmap="PuOr_r", vmin=-limit, vmax=limit)
    counts = torch.bincount(owner[mine], minlength=len(found.load)).tolist()
    ticks = range(0, len(counts), -(-len(counts) // 18))
    axes.set_yticks(ticks, [f"p{p}" for p in ticks])
    axes.grid(visible=False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(ticks, [str(counts[p]) for p in ticks])
    right.tick_params(length=0)
    against = f"gathered in one pathway {c.value:.3f} (random groups {c.null_mean:.3f} ± {2 * c.null_sd:.3f})"
    axes.set_title(f"L{found.layer}: {len(order)} of {len(owner)} features written by one; {against}")
    figure.colorbar(image, ax=axes, extend="both", label="part of the feature's rise")
