"""Pathway × class heatmaps: which classes each pathway sees more, or less, than its share."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from slms.measure.classes import preferred_class
from slms.measure.schema import Labels, Pathway
from slms.models.place import short_names
from slms.report.palette import LABEL, TICK, TITLE, new_figure
from slms.report.words import visible

LIMIT = 3.0  # colours saturate at a lift of 2³ = 8 and of 1/8
MOST_CLASSES = 24  # the commonest ones; a heatmap of more is not readable
COLUMNS = 4


def heatmap_figure(pathways: Mapping[str, list[Pathway]], family: str, labels: Labels, title: str = "") -> Figure:
    """log2 lift p(class | pathway) / p(class), one panel a place, pathways sorted by the class they prefer.

    Purple to orange is safe for colour-blind readers; white is "as often as everywhere".
    """
    if not pathways:
        raise ValueError("heatmap_figure: there is no routed place")
    shown = [place for place, found in pathways.items() if any(family in pathway.profile for pathway in found)]
    if not shown:
        raise ValueError(f"heatmap_figure: no place has a profile of the label family {family!r}")
    classes = sorted((c for c, p in labels.share.items() if p > 0), key=lambda c: -labels.share[c])[:MOST_CLASSES]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    tallest = max(len(pathways[place]) for place in shown)
    panel_width = max(2.2, 0.24 * len(classes), 7.0 / columns - 0.45)  # never narrower than the heading
    panel_height = min(9.0, max(2.2, 0.17 * tallest))
    width, height = 1.9 + columns * (panel_width + 0.45), 0.8 + rows * (panel_height + 0.4) + 1.1
    figure = new_figure(width, height)
    grid = figure.add_gridspec(
        rows, columns, left=0.7 / width, right=1 - 1.1 / width, top=1 - 0.85 / height, bottom=1.15 / height,
        wspace=0.45 / panel_width, hspace=0.4 / panel_height,
    )  # fmt: skip
    images = []
    for i, (place, name) in enumerate(zip(shown, short_names(shown), strict=True)):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        lowest = i + columns >= len(shown)
        lifts = lift_rows(pathways[place], family, labels, classes)
        images.append(_panel(axes, name, lifts, classes if lowest else [], y_label=i % columns == 0))
    bar = figure.colorbar(images[0], cax=figure.add_axes((1 - 0.85 / width, 0.3, 0.16 / width, 0.45)))
    bar.set_ticks(range(-3, 4), labels=["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.set_label("times the average", fontsize=LABEL)
    heading = title or f"How often each pathway sees each class of '{family}', relative to all tokens"
    figure.text(0.25 / width, 1 - 0.35 / height, heading, fontsize=TITLE, fontweight="bold", parse_math=False)
    return figure


def lift_rows(
    pathways: Sequence[Pathway], family: str, labels: Labels, classes: list[str]
) -> list[tuple[int, list[float]]]:
    """(pathway index, log2 lift per class clipped to ± 3), sorted by preferred class; unused pathways last."""
    order = {name: i for i, name in enumerate(classes)}
    rows = []
    for pathway in pathways:
        profile = pathway.profile.get(family, {})
        if not profile:
            rows.append((len(order) + 1, pathway.index, [0.0] * len(classes)))
            continue
        lifts = [profile.get(name, 0.0) / labels.share[name] for name in classes]
        values = [max(-LIMIT, min(LIMIT, math.log2(lift))) if lift > 0 else -LIMIT for lift in lifts]
        best = preferred_class(profile, labels.share)
        rows.append((order.get(best or "", len(order)), pathway.index, values))
    return [(index, values) for _, index, values in sorted(rows)]


def _panel(
    axes: Axes, title: str, rows: Sequence[tuple[int, list[float]]], names: list[str], y_label: bool
) -> AxesImage:
    matrix = [values for _, values in rows]
    image = axes.imshow(matrix, cmap="PuOr_r", vmin=-LIMIT, vmax=LIMIT, aspect="auto", interpolation="nearest")
    name_cells(axes, [f"p{index}" for index, _ in rows], names)
    axes.set_title(title, loc="left", fontsize=TITLE)
    if y_label:
        axes.set_ylabel("pathway", fontsize=LABEL)
    return image


def name_cells(axes: Axes, units: list[str], classes: list[str]) -> None:
    """Name the rows (32 at most) and columns of a unit × class image; no classes, no names under it."""
    every = max(1, math.ceil(len(units) / 32))
    axes.set_yticks(range(0, len(units), every), units[::every], fontsize=7)
    names = [visible(name, 14) for name in classes]
    axes.set_xticks(range(len(names)), names, fontsize=TICK, rotation=90, parse_math=False)
    axes.set_frame_on(False)
