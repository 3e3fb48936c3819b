"""`llm_monosemanticity.png`: purity across layers, distribution of specializations, top pathways, utilization."""

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
from slms.report.palette import COLOURS, GREY, LABEL, MARKERS, PALE, TICK, TITLE, dress, new_figure, place_ticks
from slms.report.words import visible

TABLE_ROWS = 20
TABLE_CHARACTERS = 52  # monospaced characters that the token column holds
NAMED_CLASSES = len(COLOURS) - 1


def monosemanticity_figure(results: Results) -> Figure:
    """The four panels as one 1600 × 1200 figure. Raises ValueError when nothing is routed."""
    if not results.pathways:
        raise ValueError("the results hold no routed place: there is no specialization to draw")
    ranked = families_of(results.rows, "si")
    figure = new_figure(16, 12)
    figure.text(0.05, 0.968, _headline(results), fontsize=15, fontweight="bold", parse_math=False)
    figure.text(0.05, 0.943, _subline(results), fontsize=LABEL, color="#444444", parse_math=False)
    grid = figure.add_gridspec(2, 2, left=0.05, right=0.985, top=0.905, bottom=0.055, hspace=0.22, wspace=0.13)
    right = grid[0, 1].subgridspec(2, 1, hspace=0.42)
    _across_places(figure.add_subplot(grid[0, 0]), results, ranked)
    _purity_of_pathways(figure.add_subplot(right[0]), results.pathways)
    _preferences(figure.add_subplot(right[1]), results, ranked)
    _top_pathways(figure.add_subplot(grid[1, 0]), results, ranked)
    _utilization(figure.add_subplot(grid[1, 1]), results.pathways, by_place(results.rows, "utilization"))
    return figure


def _headline(results: Results) -> str:
    return f"{results.run.name}: what each pathway is for"


def _subline(results: Results) -> str:
    model, dense, compute = results.losses.model, results.losses.dense, results.compute
    parts = [f"base {shortened(results.base.name)} ({results.base.source})", f"data {shortened(results.data.name)}"]
    if dense:
        parts.append(f"dense {dense.nats:.4f} → {results.run.role} {model.nats:.4f} nats/token")
    else:
        parts.append(f"{model.nats:.4f} nats/token")
    if compute:
        parts.append(f"{compute.active_fraction:.0%} of MLP neurons active")
    parts.append(f"{len(results.places)} routed places" if len(results.places) > 1 else "1 routed place")
    return "   ·   ".join(parts)


def _across_places(axes: Axes, results: Results, ranked: list[str]) -> None:
    """Purity and SI with 95 % intervals, on the band that permuted labels leave."""
    series = [("purity", by_place(results.rows, "purity"))]
    series += [(f"SI {family}", by_place(results.rows, "si", family)) for family in ranked[: len(COLOURS) - 1]]
    step = min(0.16, 0.7 / len(series))
    for i, (name, found) in enumerate(series):
        xs, ys = [], []
        for at, place in enumerate(results.places):
            row = found.get(place)
            if row is None or row.value is None:
                continue
            x = at + (i - (len(series) - 1) / 2) * step
            xs.append(x)
            ys.append(row.value)
            if row.null_sd is not None:
                axes.add_patch(Rectangle((x - step / 2, -2 * row.null_sd), step, 4 * row.null_sd, color=PALE, zorder=0))
            if row.control is not None:
                axes.plot(x, row.control, "_", color=GREY, markersize=9, zorder=2)
            if row.low is not None and row.high is not None:
                axes.vlines(x, row.low, row.high, color=COLOURS[i], linewidth=2)
        axes.plot(xs, ys, MARKERS[i], linestyle="-", linewidth=1, markersize=6, color=COLOURS[i], label=name)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.plot([], [], "s", color=PALE, markersize=10, label="labels permuted, ± 2 sd")
    if any(row.control is not None for _, found in series for row in found.values()):
        axes.plot([], [], "_", color=GREY, markersize=10, label="random weights")
    dress(axes, "Purity and specialization index across layers (95 % intervals)", y="0 = chance, 1 = perfect")
    place_ticks(axes, results.places)
    axes.margins(y=0.06)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.22 * (high - low))  # room for the legend above the highest point
    axes.legend(loc="upper left", ncol=3, fontsize=TICK, frameon=False)


def _purity_of_pathways(axes: Axes, pathways: Mapping[str, list[Pathway]]) -> None:
    """One dot a pathway, the median as a bar."""
    for x, of_place in enumerate(pathways.values()):
        purities = sorted(p.purity for p in of_place if p.purity is not None)
        spread = [x + 0.5 * ((7 * i) % 11 / 10 - 0.5) for i in range(len(purities))]  # fixed jitter
        axes.plot(spread, purities, "o", color=COLOURS[0], markersize=4, alpha=0.55, markeredgewidth=0)
        if purities:
            axes.hlines(statistics.median(purities), x - 0.36, x + 0.36, color=COLOURS[1], linewidth=2.5)
    dress(axes, "Purity of each pathway (bar: median of the layer)", y="purity")
    place_ticks(axes, list(pathways))


def _preferences(axes: Axes, results: Results, ranked: list[str]) -> None:
    """How many pathways of each place prefer which class, in the family with the highest SI."""
    labelled = [family for family in ranked if family in results.labels]
    places = results.places
    if not labelled:
        dress(axes, "Preferred classes: the data carry no labels")
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
        colour = GREY if members is rest else COLOURS[i]
        axes.bar(range(len(places)), heights, 0.72, bottom, color=colour, edgecolor="white", label=name)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    dress(
        axes, f"What pathways prefer: {visible(family, 24)} ({results.labels[family].coverage:.0%} of tokens labelled)"
    )
    axes.set_ylabel("pathways", fontsize=LABEL)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    place_ticks(axes, places)
    axes.legend(*_reversed_legend(axes), loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=TICK, frameon=False)
    box = axes.get_position()
    axes.set_position((box.x0, box.y0, box.width * 0.8, box.height))


def _reversed_legend(axes: Axes):
    handles, names = axes.get_legend_handles_labels()
    return handles[::-1], names[::-1]  # top of the legend = top of the stack


def _top_pathways(axes: Axes, results: Results, ranked: list[str]) -> None:
    """The purest pathways as a table: where, how pure, how loaded, what they prefer, their most distinctive tokens."""
    axes.set_axis_off()
    axes.set_title("Top pathways and their tokens", loc="left", fontsize=TITLE, fontweight="bold")
    family = next((name for name in ranked if name in results.labels), None)
    share = results.labels[family].share if family else {}
    columns = (0.0, 0.105, 0.185, 0.25, 0.40)
    heads = ("pathway", "purity", "load", visible(family, 14) if family else "", "tokens that tell it from the rest")
    y = 0.985
    for x, head in zip(columns, heads, strict=True):
        axes.text(x, y, head, fontsize=TICK, color="#444444", fontweight="bold", va="center", parse_math=False)
    names = dict(zip(results.places, short_names(results.places), strict=True))
    for i, (place, pathway) in enumerate(top_pathways(results.pathways, TABLE_ROWS)):
        y = 0.985 - (i + 1) * 0.98 / (TABLE_ROWS + 0.5)
        if i % 2 == 0:
            axes.add_patch(Rectangle((-0.01, y - 0.023), 1.02, 0.046, color="#F2F2F2", zorder=0))
        cells = (
            f"{names[place]} p{pathway.index}",
            f"{pathway.purity:.2f}",
            f"{pathway.load * len(results.pathways[place]):.1f}×",
            visible(preferred_class(pathway.profile.get(family, {}), share) or "–", 14) if family else "",
            _token_line([token.text for token in pathway.top_tokens]),
        )
        for x, cell in zip(columns, cells, strict=True):
            axes.text(x, y, cell, fontsize=TICK, family="DejaVu Sans Mono", va="center", parse_math=False)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(0, 1.01)


def _token_line(tokens: list[str]) -> str:
    line = ""
    for token in tokens:
        word = visible(token)
        if len(line) + len(word) + 2 > TABLE_CHARACTERS:
            break
        line += word + "  "
    return line.rstrip()


def _utilization(axes: Axes, pathways: Mapping[str, list[Pathway]], used: Mapping[str, Row]) -> None:
    """Load of every pathway relative to the mean load, sorted within its place."""
    highest = 1.0
    for x, of_place in enumerate(pathways.values()):
        loads = sorted((p.load * len(of_place) for p in of_place), reverse=True)
        width = 0.8 / len(of_place)
        left = [x - 0.4 + (i + 0.5) * width for i in range(len(loads))]
        axes.bar(left, loads, width, color=COLOURS[0] if x % 2 == 0 else COLOURS[5])
        highest = max(highest, *loads)
    many = len(pathways) > 4
    for x, place in enumerate(pathways):
        if place in used and (value := used[place].value) is not None:
            text = f"{100 * value:.0f}" if many else f"{value:.0%} of pathways used"
            axes.text(x, highest * 1.04, text, ha="center", va="bottom", fontsize=TICK if len(pathways) <= 16 else 7)
    axes.axhline(1, color=COLOURS[1], linewidth=1.6, label="uniform load")
    axes.axhline(
        0.1, color=GREY, linewidth=1.2, linestyle="--", label="a tenth of it: below, a pathway counts as unused"
    )
    title = "Utilization: load of each pathway, sorted" + ("; above, % of pathways used" if many else "")
    dress(axes, title, y="load / mean load")
    place_ticks(axes, list(pathways))
    axes.set_ylim(0, highest * 1.28)
    axes.legend(loc="upper left", ncol=2, fontsize=TICK, frameon=False)


def utilization_figure(rows: Sequence[Row], pathways: Mapping[str, list[Pathway]]) -> Figure:
    """The utilization panel alone."""
    figure = new_figure(9, 4.5)
    _utilization(figure.add_axes((0.08, 0.09, 0.9, 0.82)), pathways, by_place(rows, "utilization"))
    return figure


def top_pathways(pathways: Mapping[str, list[Pathway]], rows: int) -> list[tuple[str, Pathway]]:
    """At most `rows` used pathways by purity, the best of every place before the second best of any, in their order.

    A pathway with less than a tenth of the mean load is not used (`utilization`), and says nothing of the model.
    """
    ranked = []
    for at, (place, of_place) in enumerate(pathways.items()):
        used = [p for p in of_place if p.purity is not None and p.load * len(of_place) > 0.1]
        used.sort(key=lambda p: -(p.purity or 0.0))
        ranked += [(rank, -(pathway.purity or 0.0), at, place, pathway) for rank, pathway in enumerate(used)]
    chosen = sorted(ranked, key=lambda item: item[:2])[:rows]
    chosen.sort(key=lambda item: (item[2], item[1]))
    return [(place, pathway) for *_, place, pathway in chosen]
