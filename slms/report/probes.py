"""Answer-against-foil accuracy of each task: its rows, table and figure."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from slms.data.probes import Task
from slms.measure.probes import Margins
from slms.metrics.functional.intervals import proportion
from slms.report.palette import COLOURS, GREY, PALE, TICK, TITLE, dress, new_figure
from slms.report.tables import interval, number, text_table

CHANCE = 0.5  # answer or foil


class ProbeRow(NamedTuple):
    """One task of a model; shares of its items."""

    task_id: str
    domain: str
    items: int
    """items scored"""
    accuracy: float
    """share of items whose answer is more probable than the foil; a tie counts ½"""
    low: float
    """lower end of Wilson's 95 % interval over items"""
    high: float
    """upper end"""
    chance: float
    """½: answer or foil"""
    random_model: float
    """accuracy of the same architecture with random weights"""
    blind: float
    """accuracy of the model without the prompts; None of a pair of whole sentences"""
    margin: float
    """mean log p(answer) − log p(foil), nats"""
    truncated: int
    """items whose prompt lost its beginning to the model's context"""
    left_out: int
    """items that could not be scored: longer than the context, or alike in the model's tokens"""


def probe_row(task: Task, measured: Margins, random: Margins) -> ProbeRow:
    """The numbers of one task, from the margins of its answered items under the model and under random weights."""
    scored = ~measured.nats.isnan()
    accuracy, chance = (proportion(_hits(margins.nats)) for margins in (measured, random))
    return ProbeRow(
        task.task_id, task.domain, accuracy.n, accuracy.value, accuracy.low, accuracy.high, CHANCE, chance.value,
        proportion(_hits(measured.blind)).value, float(measured.nats[scored].mean()), int(measured.truncated.sum()),
        int((~scored).sum()),
    )  # fmt: skip


def _hits(margins: Tensor) -> Tensor:
    margins = margins[~margins.isnan()]
    return (margins > 0).double() + 0.5 * (margins == 0)


def probe_table(rows: Sequence[ProbeRow]) -> str:
    """For the terminal."""
    head = ["task", "items", "accuracy", "95 % interval", "chance", "random model", "blind", "margin"]
    lines = [
        text_table(
            head,
            [
                [r.task_id, str(r.items), number(r.accuracy), interval(r.low, r.high), number(r.chance, 1),
                 number(r.random_model), number(r.blind), number(r.margin, 2)]
                for r in rows
            ],
        ),
        "  accuracy: share of items whose answer is more probable than the foil; blind: without the prompt;",
        "  margin: log p(answer) − log p(foil), nats; random model: the same architecture with random weights",
    ]  # fmt: skip
    for count, what in (("truncated", "prompts lost their beginning to the context"), ("left_out", "items left out")):
        told = [f"{r.task_id} {getattr(r, count)}" for r in rows if getattr(r, count)]
        lines += [f"  {what}: {', '.join(told)}"] if told else []
    return "\n".join(lines)


def probe_figure(name: str, rows: Sequence[ProbeRow]) -> Figure:
    """Accuracy of every task with its interval, on chance, random weights and blind accuracy."""
    height = 1.6 + 0.34 * len(rows)
    figure = new_figure(9, height)
    axes = figure.add_axes((0.26, 0.62 / height, 0.71, 1 - 1.45 / height))
    places = list(range(len(rows)))[::-1]  # the first task on top
    axes.axvline(CHANCE, color=GREY, linestyle="--", linewidth=1, label="chance")
    axes.hlines(places, [r.low for r in rows], [r.high for r in rows], color=COLOURS[0], linewidth=3)
    axes.plot([r.random_model for r in rows], places, "|", color=GREY, markersize=11, label="random weights")
    axes.plot([r.blind for r in rows], places, "o", mfc="none", color=COLOURS[1], markersize=7, label="without prompt")
    axes.plot([r.accuracy for r in rows], places, "o", color=COLOURS[0], markersize=7, label="accuracy, 95 % interval")
    dress(axes, "", x="share of items whose answer is more probable than the foil")
    axes.grid(axis="x", color=PALE, linewidth=0.8)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(places, [f"{r.task_id} ({r.items})" for r in rows], fontsize=TICK, parse_math=False)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    heading = f"{name}: answer against foil"
    figure.text(0.02, 1 - 0.3 / height, heading, fontsize=TITLE, fontweight="bold", parse_math=False)
    figure.legend(loc="upper left", bbox_to_anchor=(0.01, 1 - 0.38 / height), ncol=4, fontsize=TICK, frameon=False)
    return figure
