"""Table and figure of each task's answer-against-foil accuracy."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from slms.measure.probes import CHANCE
from slms.measure.rows import Row, frame
from slms.report.palette import COLOURS, GREY, PAGE, caption, legend_above, styled
from slms.report.tables import cell, interval, number, text_table


def probe_table(rows: Sequence[Row]) -> str:
    """The tasks' accuracies as text for the terminal."""
    of = {row.key[1:]: row for row in rows}
    head = ["task", "items", "accuracy", "95 % interval", "chance", "random model", "blind", "margin"]
    cells = []
    for r in (row for row in rows if row.metric == "accuracy"):
        rivals = number(r.null_mean, 1), number(r.control), cell(of["blind", r.family])
        scored = cell(r), interval(r.low, r.high)
        cells.append([r.family, str(r.n), *scored, *rivals, cell(of["margin", r.family])])
    lines = [
        text_table(head, cells),
        "  accuracy: share of items whose answer is more probable than the foil; blind: without the prompt;",
        "  margin: log p(answer) − log p(foil), nats; random model: the same architecture with random weights",
    ]
    for count, what in (("truncated", "prompts lost their beginning to the context"), ("left_out", "items left out")):
        told = [f"{row.family} {row.value:.0f}" for row in rows if row.metric == count and row.value]
        lines += [f"  {what}: {', '.join(told)}"] if told else []
    return "\n".join(lines)


@styled
def probe_figure(name: str, rows: Sequence[Row]) -> Figure:
    """Draw every task's accuracy with its interval, beside chance, random weights and blind accuracy."""
    accuracy, blind = (frame(row for row in rows if row.metric == metric) for metric in ("accuracy", "blind"))
    figure = Figure(figsize=(PAGE, 1 + 0.17 * len(accuracy)))
    axes = figure.add_subplot()
    places = accuracy.index[::-1]  # the first task on top
    axes.axvline(CHANCE, color=GREY, ls="--", label="chance")
    axes.hlines(places, accuracy["low"], accuracy["high"], color=COLOURS[0], linewidth=2)
    axes.plot(accuracy["control"], places, "o", mfc="white", color=COLOURS[0], label="random weights")
    axes.plot(blind["value"], places, "s", mfc="white", color=COLOURS[1], label="without prompt")
    axes.plot(accuracy["value"], places, "o", color=COLOURS[0], label="accuracy, 95 % interval")
    axes.set_xlabel("share of items whose answer is more probable than the foil")
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)
    axes.set_yticks(places, accuracy["family"] + " (" + accuracy["n"].astype(str) + ")")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(places) - 0.4))
    caption(figure, f"{name}: answer against foil")
    legend_above(axes, 4)
    return figure
