"""Draws `llm_monosemanticity.png`: purity across layers, preferred classes, top pathways, utilization."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from slms.measure.classes import preferred_class
from slms.measure.rows import Row, by_place, families_of
from slms.measure.schema import Pathway, Results
from slms.models.card import shortened
from slms.models.place import short_names
from slms.report.palette import (
    COLOURS,
    GREY,
    MATCHED,
    PAGE,
    PALE,
    beside,
    caption,
    draw_rows,
    legend_above,
    place_ticks,
    styled,
)
from slms.report.words import shorten, visible

TABLE_ROWS = 16
TABLE_CHARACTERS = 72  # monospaced characters that the token column holds
NAMED_CLASSES = len(COLOURS) - 1


@styled
def monosemanticity_figure(results: Results) -> Figure:
    """Draw the four panels, two columns wide. Raises ValueError if nothing is routed."""
    if not results.pathways:
        raise ValueError("the results hold no routed place: there is no specialization to draw")
    ranked = families_of(results.rows, "si")
    figure = Figure(figsize=(PAGE, 8))
    grid = figure.add_gridspec(3, 2, height_ratios=(2.7, 2.3, 1.4))
    right = grid[0, 1].subgridspec(2, 1)
    _across_places(figure.add_subplot(grid[0, 0]), results, ranked)
    _purity_of_pathways(figure.add_subplot(right[0]), results.pathways)
    _preferences(figure.add_subplot(right[1]), results, ranked)
    _top_pathways(figure.add_subplot(grid[1, :]), results, ranked)
    _utilization(figure.add_subplot(grid[2, :]), results.pathways, by_place(results.rows, "utilization"), "d   ")
    matched = f"; {MATCHED}" if any(row.control_sd is not None for row in results.rows) else ""
    note = f"{_facts(results)}\na: bars, 95 % intervals over documents{matched}"
    caption(figure, f"{shorten(results.run.name, 60)}: what each pathway is for", note)
    return figure


def _facts(results: Results) -> str:
    model, dense, compute = results.losses.model, results.losses.dense, results.compute
    parts = [f"base {shortened(results.base.name)} ({results.base.source})", f"data {shortened(results.data.name)}"]
    if dense:
        parts.append(f"dense {dense.nats:.4f} → {results.run.role} {model.nats:.4f} nats/token")
    else:
        parts.append(f"{model.nats:.4f} nats/token")
    if compute:
        parts.append(f"{compute.active_fraction:.0%} of MLP neurons active")
        parts += [] if compute.head_fraction is None else [f"{compute.head_fraction:.0%} of heads active"]
    parts.append(f"{len(results.places)} routed places" if len(results.places) > 1 else "1 routed place")
    return " · ".join(parts)


def _across_places(axes: Axes, results: Results, ranked: list[str]) -> None:
    """Draw purity and SI with 95 % intervals, beside what random routers with the same loads score."""
    series = [("purity", by_place(results.rows, "purity"))]
    series += [(f"SI {shorten(f, 13)}", by_place(results.rows, "si", f)) for f in ranked[: len(COLOURS) - 1]]
    for i, (name, found) in enumerate(series):
        at = {x + beside(i, len(series)): found[p] for x, p in enumerate(results.places) if p in found}
        draw_rows(axes, list(at), list(at.values()), name, i)
    axes.axhline(0, color=GREY, linewidth=0.6, zorder=0.5)
    axes.set(title="a   Purity and specialization index (SI)", ylabel="share of H(token), of H(class); 0: chance")
    place_ticks(axes, results.places)
    legend_above(axes, 3)


def _purity_of_pathways(axes: Axes, pathways: Mapping[str, list[Pathway]]) -> None:
    """Draw a dot for each pathway's purity, and the median as a bar."""
    for x, of_place in enumerate(pathways.values()):
        purities = sorted(p.purity for p in of_place if p.purity is not None)
        spread = [x + 0.5 * ((7 * i) % 11 / 10 - 0.5) for i in range(len(purities))]  # fixed jitter
        axes.plot(spread, purities, "o", color=COLOURS[0], markersize=2.5, alpha=0.5, markeredgewidth=0)
        if purities:
            axes.hlines(statistics.median(purities), x - 0.36, x + 0.36, color=COLOURS[1], linewidth=1.5, zorder=3)
    axes.set(title="b   Purity of each pathway (bar: median)", ylabel="purity")
    place_ticks(axes, list(pathways))


def _preferences(axes: Axes, results: Results, ranked: list[str]) -> None:
    """Draw how many pathways of each place prefer which class, in the family with the highest SI."""
    labelled = [family for family in ranked if family in results.labels]
    places = results.places
    if not labelled:
        axes.set_title("Preferred classes: the data carry no labels")
        axes.set_axis_off()
        return
    family = labelled[0]
    share = results.labels[family].share
    votes = [
        Counter(preferred_class(p.profile.get(family, {}), share) for p in results.pathways[place]) for place in places
    ]
    total = sum((Counter(vote) for vote in votes), Counter())
    names = [name for name, _ in total.most_common() if name is not None]
    several = len(names) > len(COLOURS)  # of what is left over: a single class has the colour that it would share
    named, rest = (names[:NAMED_CLASSES], names[NAMED_CLASSES:]) if several else (names, [])
    bottom = [0] * len(places)
    groups = [(visible(name, 14), [name]) for name in named] + ([(f"{len(rest)} others", rest)] if rest else [])
    for i, (name, members) in enumerate(groups):
        heights = [sum(vote[member] for member in members) for vote in votes]
        colour = PALE if members is rest else COLOURS[i]
        axes.bar(range(len(places)), heights, 0.72, bottom, color=colour, edgecolor="white", linewidth=0.4, label=name)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    coverage = results.labels[family].coverage
    axes.set(title=f"Preferred {visible(family, 14)}", ylabel=f"pathways ({coverage:.0%} labelled)")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    place_ticks(axes, places)
    axes.legend(reverse=True, loc="center left", bbox_to_anchor=(1, 0.5))  # its top is the top of the stack


def _top_pathways(axes: Axes, results: Results, ranked: list[str]) -> None:
    """Draw a table of the purest pathways: place, purity, load, preferred class and most distinctive tokens."""
    axes.set_axis_off()
    axes.set_title("c   Top pathways and their tokens")
    family = next((name for name in ranked if name in results.labels), None)
    share = results.labels[family].share if family else {}
    columns = (0.0, 0.105, 0.165, 0.225, 0.365)
    heads = ("pathway", "purity", "load", visible(family, 14) if family else "", "tokens that tell it from the rest")
    for x, head in zip(columns, heads, strict=True):
        axes.text(x, -1, head, color=GREY, va="center", in_layout=False)
    names = dict(zip(results.places, short_names(results.places), strict=True))
    for y, (place, pathway) in enumerate(top_pathways(results.pathways, TABLE_ROWS)):
        if y % 2 == 0:
            axes.add_patch(Rectangle((-0.005, y - 0.5), 1.01, 1, color="#F2F2F2", zorder=0))
        cells = (
            f"{names[place]} p{pathway.index}",
            f"{pathway.purity:.2f}",
            f"{pathway.load * len(results.pathways[place]):.1f}×",
            visible(preferred_class(pathway.profile.get(family, {}), share) or "–", 14) if family else "",
            _token_line([token.text for token in pathway.top_tokens]),
        )
        for x, cell in zip(columns, cells, strict=True):
            axes.text(x, y, cell, family="DejaVu Sans Mono", va="center", in_layout=False)
    axes.set_xlim(-0.005, 1.005)
    axes.set_ylim(TABLE_ROWS - 0.5, -1.5)


def _token_line(tokens: list[str]) -> str:
    line = ""
    for token in tokens:
        word = visible(token)
        if len(line) + len(word) + 2 > TABLE_CHARACTERS:
            break
        line += word + "  "
    return line.rstrip()


def _utilization(axes: Axes, pathways: Mapping[str, list[Pathway]], used: Mapping[str, Row], letter: str = "") -> None:
    """Draw the load of every pathway relative to the mean load, sorted within its place."""
    highest = 1.0
    for x, of_place in enumerate(pathways.values()):
        loads = sorted((p.load * len(of_place) for p in of_place), reverse=True)
        edges = [x - 0.4 + 0.8 * i / len(loads) for i in range(len(loads) + 1)]
        axes.stairs(loads, edges, fill=True, color=COLOURS[0] if x % 2 == 0 else COLOURS[2])
        highest = max(highest, *loads)
    ticks = place_ticks(axes, list(pathways), most=32)
    for x, place in enumerate(pathways):
        if x in ticks and place in used and (value := used[place].value) is not None:
            axes.text(x, highest * 1.04, f"{100 * value:.0f}", ha="center", va="bottom")
    axes.axhline(1, color=COLOURS[1], label="uniform load")
    axes.axhline(0.1, color=GREY, ls="--", label="a tenth of it: below, a pathway counts as unused")
    title = f"{letter}Utilization: load of each pathway, sorted; above, % of pathways used"
    axes.set(title=title, ylabel="load / mean load", ylim=(0, highest * 1.2))
    legend_above(axes, 2)


@styled
def utilization_figure(rows: Sequence[Row], pathways: Mapping[str, list[Pathway]]) -> Figure:
    """Draw the utilization panel alone."""
    figure = Figure(figsize=(PAGE, 2.2))
    _utilization(figure.add_subplot(), pathways, by_place(rows, "utilization"))
    return figure


def top_pathways(pathways: Mapping[str, list[Pathway]], rows: int) -> list[tuple[str, Pathway]]:
    """At most `rows` used pathways, in order: the purest of every place come before the second purest of any.

    A pathway with less than a tenth of the mean load counts as unused (`utilization`) and says nothing of the model.
    """
    ranked = []
    for at, (place, of_place) in enumerate(pathways.items()):
        used = [p for p in of_place if p.purity is not None and p.load * len(of_place) > 0.1]
        used.sort(key=lambda p: -(p.purity or 0.0))
        ranked += [(rank, -(pathway.purity or 0.0), at, place, pathway) for rank, pathway in enumerate(used)]
    chosen = sorted(ranked, key=lambda item: item[:2])[:rows]
    chosen.sort(key=lambda item: (item[2], item[1]))
    return [(place, pathway) for *_, place, pathway in chosen]
