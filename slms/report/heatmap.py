"""Draws pathway × class heatmaps, which show the classes that each pathway sees more, or less, than its share."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slms.measure.classes import preferred_class
from slms.measure.schema import Labels, Pathway
from slms.models.place import short_names
from slms.report.palette import PAGE, caption, styled
from slms.report.words import visible

LIMIT = 3.0  # colours saturate at a lift of 2³ = 8 and of 1/8
MOST_CLASSES = 24  # the commonest are shown; a heatmap of more is not readable
COLUMNS = 4


@styled
def heatmap_figure(pathways: Mapping[str, list[Pathway]], family: str, labels: Labels, title: str = "") -> Figure:
    """Draw log2 lift p(class | pathway) / p(class), one panel per place, pathways sorted by the class they prefer.

    Purple to orange is safe for colour-blind readers; white means "as often as everywhere".
    """
    if not pathways:
        raise ValueError("heatmap_figure: there is no routed place")
    shown = [place for place, found in pathways.items() if any(family in pathway.profile for pathway in found)]
    if not shown:
        raise ValueError(f"heatmap_figure: no place has a profile of the label family {family!r}")
    classes = sorted((c for c, p in labels.share.items() if p > 0), key=lambda c: -labels.share[c])[:MOST_CLASSES]
    figure, panels = image_panels(len(shown), len(classes), max(len(pathways[place]) for place in shown))
    images = []
    for axes, place, name in zip(panels, shown, short_names(shown), strict=True):
        lifts = lift_rows(pathways[place], family, labels, classes)
        matrix = [values for _, values in lifts]
        images.append(axes.imshow(matrix, cmap="PuOr_r", vmin=-LIMIT, vmax=LIMIT))
        name_cells(axes, [f"p{index}" for index, _ in lifts], classes)
        axes.set_title(name)
    bar = figure.colorbar(images[0], ax=panels, aspect=30)
    bar.set_ticks(range(-3, 4), labels=["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.set_label("times the average")
    heading = title or f"How often each pathway sees each class of '{family}', relative to all tokens"
    caption(figure, heading, "rows: pathways, sorted by the class that they prefer")
    return figure


def image_panels(n: int, classes: int, units: int, names: float = 0.5) -> tuple[Figure, list[Axes]]:
    """Make a page of `n` panels of units × classes, wide enough for the classes' names and, up to a limit, high enough.

    `names` is the width in inches that the names of units need.
    """
    columns = min(COLUMNS, n, max(1, int(6.2 / (max(1.0, 0.13 * classes) + names))))
    rows = -(-n // columns)
    figure = Figure(figsize=(PAGE, 1.3 + rows * (0.3 + min(2.3, max(1.0, 0.12 * units)))))
    grid = figure.add_gridspec(rows, columns)
    panels = [figure.add_subplot(grid[i // columns, i % columns]) for i in range(n)]
    for i, axes in enumerate(panels):
        axes.tick_params(length=0, labelbottom=i + columns >= n)  # what stands below others has their columns
    return figure, panels


def lift_rows(
    pathways: Sequence[Pathway], family: str, labels: Labels, classes: list[str]
) -> list[tuple[int, list[float]]]:
    """Rows (pathway index, log2 lift per class clipped to ± 3) by preferred class; unused pathways come last."""
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


def name_cells(axes: Axes, units: list[str], classes: list[str]) -> None:
    """Label the rows (at most 18) and columns of a unit × class image."""
    every = -(-len(units) // 18)
    axes.set_yticks(range(0, len(units), every), units[::every])
    axes.set_xticks(range(len(classes)), [visible(name, 14) for name in classes], rotation=90)
    axes.set_frame_on(False)
    axes.grid(visible=False)
