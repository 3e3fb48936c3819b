"""Gives every figure one look, that of `slms.mplstyle`: colours, legends, and files as PNG and SVG."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context, rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from slms.files import write_atomic
from slms.measure.rows import Row
from slms.models.place import short_names

STYLE = Path(__file__).with_name("slms.mplstyle")
styled = rc_context(fname=STYLE)
"""Decorator for functions that make or draw a figure. Your own matplotlib settings are neither used nor changed."""

COLOURS: tuple[str, ...] = tuple(rc_params_from_file(STYLE)["axes.prop_cycle"].by_key()["color"])
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, PALE = "#6E6E6E", "#DDDDDD"
PAGE = 7.0  # inches, two columns of a paper
LEGEND_ROW = 10.5  # points, of text of 7 with the space below it
RANDOM = "hollow: the same network with random weights"
MATCHED = "hollow: random routers with the same loads, ± 2 sd over seeds"


def caption(figure: Figure, heading: str, note: str = "") -> None:
    """Write a heading above the panels and, below them, a note that explains their marks; long texts are wrapped."""
    figure.suptitle(heading, x=0.008, ha="left", wrap=True)
    figure.supxlabel(note, x=0.008, ha="left", color=GREY, wrap=True)


def look(i: int) -> tuple[str, str]:
    """The colour and mark of the i-th series; the first 49 all differ."""
    return COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def beside(i: int, n: int) -> float:
    """The distance of the i-th of n series from the places' ticks, so that no interval hides another."""
    return (i - (n - 1) / 2) * min(0.16, 0.7 / n)


def draw_rows(axes: Axes, at: Sequence[float], rows: Sequence[Row], label: str, i: int) -> None:
    """Draw one series: values joined by a line, 95 % intervals as bars, and hollow marks for the control, ± 2 sd."""
    colour, marker = look(i)
    found = [(x, row) for x, row in zip(at, rows, strict=True) if row.value is not None]
    if not found:
        return
    values = [row.value for _, row in found if row.value is not None]
    axes.plot([x for x, _ in found], values, marker, ls="-", color=colour, label=label)
    bars = [(x, row.low, row.high) for x, row in found if row.low is not None and row.high is not None]
    if bars:
        axes.vlines(*zip(*bars, strict=True), color=colour, linewidth=1.5)
    spread = [(x, row.control, row.control_sd) for x, row in found if row.control is not None and row.control_sd]
    for x, control, sd in spread:
        axes.vlines(x, control - 2 * sd, control + 2 * sd, color=PALE, linewidth=4, zorder=0)
    random = [(x, row.control) for x, row in found if row.control is not None]
    if random:
        axes.plot(*zip(*random, strict=True), marker, ls="none", color=colour, mfc="white", mew=0.7, zorder=1.9)


def place_ticks(axes: Axes, places: Sequence[str], most: int = 10) -> range:
    """Set at most `most` ticks, named L0, L2, … if all places are of one part; x runs over 0 … len(places) − 1.

    Returns which places have a tick. Many names, or long ones, stand upright.
    """
    names, ticks = short_names(places), range(0, len(places), -(-len(places) // most) or 1)
    upright = max(map(len, names), default=0) * min(len(names), most) > 3 * most
    axes.set_xticks(ticks, names[:: ticks.step], rotation=90 if upright else 0)
    axes.set_xlim(-0.6, len(places) - 0.4)
    return ticks


def legend_above(axes: Axes, columns: int, names: Sequence[str] | None = None) -> None:
    """Put the legend (of the series in `names`) between the title and the data."""
    handles, labels = axes.get_legend_handles_labels()
    kept = [(h, name) for h, name in zip(handles, labels, strict=True) if names is None or name in names]
    if not kept:
        return
    axes.legend(*zip(*kept, strict=True), loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
    axes.set_title(axes.get_title("left"), pad=4 + LEGEND_ROW * -(-len(kept) // columns))


@styled
def write_figure(path: Path | str, figure: Figure) -> Path:
    """Write the figure as PNG to `path` and as SVG of the same name beside it, each whole or not at all."""
    png, svg, dpi = io.BytesIO(), io.StringIO(), figure.dpi
    FigureCanvasAgg(figure).print_png(png)
    figure.set_layout_engine("none")  # the layout is final
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})  # the same figure, the same bytes
    figure.set_dpi(dpi)  # which SVG sets to its own
    write_atomic(Path(path).with_suffix(".svg"), svg.getvalue())
    return write_atomic(path, png.getvalue())
