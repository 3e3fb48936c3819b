"""One look for every figure: a colour-blind safe palette, font sizes, and writing a PNG."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slms.files import write_atomic
from slms.models.place import short_names

# Okabe & Ito (2008), distinguishable under the common colour-vision deficiencies; yellow left out: too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, PALE = "#8C8C8C", "#DDDDDD"
TITLE, LABEL, TICK = 12, 10, 9  # points; legible at 100 dpi


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` × `height` inches without pyplot's global state (it is drawn by Agg when saved)."""
    return Figure(figsize=(width, height), dpi=100)


def dress(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Title at the left, labels, no box, light horizontal grid behind the data."""
    axes.set_title(title, loc="left", fontsize=TITLE, fontweight="bold", parse_math=False)
    axes.set_xlabel(x, fontsize=LABEL)
    axes.set_ylabel(y, fontsize=LABEL)
    axes.tick_params(labelsize=TICK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)


def place_ticks(axes: Axes, places: Sequence[str]) -> None:
    """One tick a place, named L0, L2, … where all are of one part; x runs over 0 … len(places) − 1."""
    size = TICK if len(places) <= 16 else 7
    axes.set_xticks(range(len(places)), short_names(places), fontsize=size, parse_math=False)
    axes.set_xlim(-0.6, len(places) - 0.4)


def write_figure(path: Path | str, figure: Figure) -> Path:
    """Render as PNG in memory, then write atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomic(path, buffer.getvalue())
