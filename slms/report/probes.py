"""Table and figure of each task's answer-against-foil accuracy."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from slms.measure.probes import CHANCE, ProbeRow
from slms.report.palette import COLOURS, GREY, PAGE, caption, legend_above, styled
from slms.report.tables import interval, number, text_table


def probe_table(rows: Sequence[ProbeRow]) -> str:
    """The tasks' accuracies as text for the terminal."""
    head = ["task", "items", "accuracy", "95 % interval", "chance", "random model", "blind", "margin"]
    cells = []
    for r in rows:
        rivals = number(r.chance, 1), number(r.random_model), number(r.blind)
        scored = number(r.accuracy), interval(r.low, r.high)
        cells.append([r.task_id, str(r.items), *scored, *rivals, number(r.margin, 2)])
    lines = [
        text_table(head, cells),
        "  accuracy: share of items whose answer is more probable than the foil; blind: without the prompt;",
        "  margin: log p(answer) − log p(foil), nats; random model: the same architecture with random weights",
    ]
    for count, what in (("truncated", "prompts lost their beginning to the context"), ("left_out", "items left out")):
        told = [f"{r.task_id} {getattr(r, count)}" for r in rows if getattr(r, count)]
        lines += [f"  {what}: {', '.join(told)}"] if told else []
    return "\n".join(lines)


@styled
def probe_figure(name: str, rows: Sequence[ProbeRow]) -> Figure:
    """Draw every task's accuracy with its interval, beside chance, random weights and blind accuracy."""
    figure = Figure(figsize=(PAGE, 1 + 0.17 * len(rows)))
    axes = figure.add_subplot()
    places = list(range(len(rows)))[::-1]  # the first task on top
    axes.axvline(CHANCE, color=GREY, ls="--", label="chance")
    axes.hlines(places, [r.low for r in rows], [r.high for r in rows], color=COLOURS[0], linewidth=2)
    axes.plot([r.random_model for r in rows], places, "o", mfc="white", color=COLOURS[0], label="random weights")
    axes.plot([r.blind for r in rows], places, "s", mfc="white", color=COLOURS[1], label="without prompt")
    axes.plot([r.accuracy for r in rows], places, "o", color=COLOURS[0], label="accuracy, 95 % interval")
    axes.set_xlabel("share of items whose answer is more probable than the foil")
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)
    axes.set_yticks(places, [f"{r.task_id} ({r.items})" for r in rows])
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(rows) - 0.4))
    caption(figure, f"{name}: answer against foil")
    legend_above(axes, 4)
    return figure
