"""Draws `specialization.png`: AS, SI, coherence and Q by layer, each beside what chance and random weights give."""

import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slms.measure.rows import MEAN, Row
from slms.report.palette import GREY, PAGE, RANDOM, beside, caption, draw_rows, legend_above, place_ticks, styled
from slms.report.words import shorten

SHOWN_SPARSITY = ("gini", "top_mass", "participation")


@styled
def specialization_figure(rows: Iterable[Row], title: str, units: str) -> Figure:
    """Draw four panels: each number with its interval, and the same of a model with random weights."""
    rows = [row for row in rows if row.place != MEAN]
    places = list(dict.fromkeys(row.place for row in rows))
    figure = Figure(figsize=(PAGE, 5.4))
    sparsity, si, coherence, q = figure.subplots(2, 2).flat

    def lines(axes: Axes, series: Mapping[str, tuple[str, str]]) -> None:
        for i, (label, (metric, family)) in enumerate(series.items()):
            found = _of(rows, metric, family)
            at = [places.index(row.place) + beside(i, len(series)) for row in found]
            draw_rows(axes, at, found, label, i)

    lines(sparsity, {name.replace("_", " "): ("sparsity", name) for name in SHOWN_SPARSITY})
    sparsity.set(title="a   Activation sparsity", ylabel="share of neurons; Gini from 0 to 1")
    families = dict.fromkeys(row.family for row in rows if row.metric == "si")
    lines(si, {shorten(family.replace("_", " "), 16): ("si", family) for family in families})
    si.set(title="b   Specialization index, chance subtracted", ylabel="share of H(class)")
    lines(coherence, {"strongest tokens": ("coherence", "")})
    coherence.axhline(0, color=GREY, linewidth=0.6)
    coherence.set(title="c   Semantic coherence, chance subtracted", ylabel="mean cosine")
    lines(q, {"Leiden communities": ("q", ""), "pathways": ("q_partition", "")})
    nulls = _of(rows, "q", "")
    if nulls:
        at = [places.index(row.place) for row in nulls]
        means = [math.nan if row.null_mean is None else row.null_mean for row in nulls]
        q.plot(at, means, "_", color=GREY, markersize=8, label="tokens shuffled")
    q.set(title="d   Modularity of the co-activation graph", ylabel="Q")
    for axes in (sparsity, si, coherence, q):
        place_ticks(axes, places)
        legend_above(axes, 3)
    random = f"; {RANDOM}" if any(row.control is not None for row in rows) else ""
    caption(figure, f"{title}: how specialised its {units} are", f"bars: 95 % intervals over documents{random}")
    return figure


def _of(rows: Sequence[Row], metric: str, family: str) -> list[Row]:
    return [row for row in rows if (row.metric, row.family) == (metric, family) and row.value is not None]
