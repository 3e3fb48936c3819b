"""`specialization.png`: AS, SI, coherence and Q by layer, each beside what chance and random weights give."""

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slms.measure.rows import MEAN, Row
from slms.report.palette import COLOURS, GREY, LABEL, MARKERS, TICK, dress, new_figure, place_ticks

SHOWN_SPARSITY = ("gini", "top_mass", "participation")


def specialization_figure(rows: Iterable[Row], title: str, units: str) -> Figure:
    """Four panels; dashed lines and hollow markers are the same measures of a model with random weights."""
    rows = [row for row in rows if row.place != MEAN]
    places = list(dict.fromkeys(row.place for row in rows))
    figure = new_figure(13, 8.4)
    grid = figure.add_gridspec(2, 2, left=0.065, right=0.985, top=0.885, bottom=0.075, hspace=0.34, wspace=0.16)
    sparsity, si, coherence, q = (figure.add_subplot(grid[i // 2, i % 2]) for i in range(4))

    for i, measure in enumerate(SHOWN_SPARSITY):
        _line(sparsity, places, _of(rows, "sparsity", measure), measure.replace("_", " "), i)
    dress(sparsity, "Activation sparsity", y="share")
    families = list(dict.fromkeys(row.family for row in rows if row.metric == "si"))
    for i, family in enumerate(families):
        _line(si, places, _of(rows, "si", family), family.replace("_", " "), i)
    dress(si, "Specialization index, chance subtracted", y="SI")
    _line(coherence, places, _of(rows, "coherence", ""), "strongest tokens", 0)
    coherence.axhline(0, color=GREY, linewidth=1)
    dress(coherence, "Semantic coherence, chance subtracted", y="mean cosine")
    _line(q, places, _of(rows, "q", ""), "Leiden communities", 0)
    _line(q, places, _of(rows, "q_partition", ""), "pathways", 2)
    nulls = _of(rows, "q", "")
    if nulls:
        at = [places.index(row.place) for row in nulls]
        means = [math.nan if row.null_mean is None else row.null_mean for row in nulls]
        q.plot(at, means, "_", color=GREY, markersize=14, label="tokens shuffled")
    dress(q, "Modularity Q of the co-activation graph", y="Q")
    for axes in (sparsity, si, coherence, q):
        place_ticks(axes, places)
        if axes.get_legend_handles_labels()[0]:
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + 0.3 * (high - low))
            axes.legend(fontsize=TICK, frameon=False, loc="upper left", ncol=3)
    figure.text(
        0.02, 0.955, f"{title}: how specialised its {units} are", fontsize=14, fontweight="bold", parse_math=False
    )
    note = "bars: 95 % over documents"
    if any(row.control is not None for row in rows):
        note += "; hollow, dashed: the same model with random weights"
    figure.text(0.02, 0.925, note, fontsize=LABEL, color="#555555")
    return figure


def _of(rows: Sequence[Row], metric: str, family: str) -> list[Row]:
    return [row for row in rows if (row.metric, row.family) == (metric, family) and row.value is not None]


def _line(axes: Axes, places: Sequence[str], rows: Sequence[Row], label: str, i: int) -> None:
    if not rows:
        return
    at, colour, marker = [places.index(row.place) for row in rows], COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    values = [row.value for row in rows if row.value is not None]  # as `_of` has chosen them
    axes.plot(at, values, marker, ls="-", color=colour, label=label, markersize=6)
    for x, row in zip(at, rows, strict=True):
        if row.low is not None and row.high is not None:
            axes.vlines(x, row.low, row.high, color=colour, linewidth=2)
    random = [(x, row.control) for x, row in zip(at, rows, strict=True) if row.control is not None]
    if random:
        axes.plot(*zip(*random, strict=True), marker, ls="--", color=colour, mfc="white", markersize=6, linewidth=1)
