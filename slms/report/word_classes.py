"""Shows how many pathways tokens execute by word class, if their number follows the token: a table and a figure."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from slms.measure.metrics import BY_CLASS
from slms.measure.rows import MEAN, Row
from slms.report.heatmap import image_panels, name_cells
from slms.report.palette import caption, styled
from slms.report.place_tables import place_names
from slms.report.tables import INDENT, WIDTH, cell, text_table
from slms.report.words import visible

FIGURE_FILE = "pathways_by_class.png"


def counted(rows: Sequence[Row]) -> list[Row]:
    """The rows of pathways by word class; none if every token executes equally many."""
    return [row for row in rows if row.metric == BY_CLASS and row.value is not None]


def classes_of(rows: Sequence[Row]) -> list[str]:
    """The word classes, that with the most pathways over places first."""
    found: dict[str, list[float]] = {}
    for row in counted(rows):
        found.setdefault(row.family, []).append(row.value or 0.0)
    return sorted(found, key=lambda name: (-sum(found[name]) / len(found[name]), name))


def word_class_table(rows: Sequence[Row]) -> str:
    """A table of the mean number of pathways by place and word class; empty if every token executes equally many."""
    found = {(row.place, row.family): row for row in counted(rows)}
    if not found:
        return ""
    names, tables = place_names([row for row in rows if row.metric == BY_CLASS]), []
    width = max(map(len, names.values())) + 2
    fitting = (WIDTH - len(INDENT) - width) // 8
    classes = classes_of(rows)
    for start in range(0, len(classes), fitting):
        part = classes[start : start + fitting]
        lines = [
            [name, *(cell(found[place, one]) if (place, one) in found else "–" for one in part)]
            for place, name in names.items()
        ]
        tables.append(text_table(["pathways", *(visible(one, 6) for one in part)], lines))
    return "\n\n".join([*tables, f"{INDENT}pathways executed, mean over the tokens of a word class"])


@styled
def word_class_figure(rows: Sequence[Row], title: str) -> Figure:
    """Draw the number of pathways over the place's mean, places × word classes, white where it is the mean.

    Raises:
        ValueError: every token executes equally many.
    """
    found, classes = {(row.place, row.family): row.value for row in counted(rows)}, classes_of(rows)
    if not found:
        raise ValueError("word_class_figure: every token executes equally many pathways")
    mean = {row.place: row.value for row in rows if row.metric == "chosen_per_token"}
    names = {place: name for place, name in place_names(rows).items() if place != MEAN and place in mean}
    matrix = [
        [math.log2((found.get((place, one)) or math.nan) / (mean[place] or math.nan)) for one in classes]
        for place in names
    ]
    figure, (axes,) = image_panels(1, len(classes), len(names))
    largest = max((abs(x) for row in matrix for x in row if math.isfinite(x)), default=0.0) or 1.0
    image = axes.imshow(matrix, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
    name_cells(axes, list(names.values()), classes)
    bar = figure.colorbar(image, ax=axes, aspect=30)
    ticks = [-largest, 0.0, largest]
    bar.set_ticks(ticks, labels=[f"{2**tick:.2g}" for tick in ticks])
    bar.set_label("times the place's mean")
    caption(figure, title, "how many pathways the tokens of a word class execute, over all tokens' mean")
    return figure
