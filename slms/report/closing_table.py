"""Makes the table with which a run ends: losses, compute, and the metrics of every place."""

import math

from slms.measure.metrics import METRICS
from slms.measure.rows import MODEL, families_of
from slms.measure.schema import Loss, Results
from slms.models.card import shortened
from slms.report.place_tables import control_notes, place_tables
from slms.report.tables import INDENT, WIDTH, amount, executed, interval, number, share, text_table
from slms.report.words import visible

WHOLE = "whole model, head included"
CHOICES = {"oracle": "largest outputs (oracle)", "random_router": "load-matched random routers"}


def closing_table(results: Results, brief: bool = False) -> str:
    """A run's results as text: loss against the dense base, compute, and metrics by place with their controls.

    brief: leave out what `Metric.in_brief` leaves to `eval.py pathways`; the results file holds all.
    """
    blocks = [_heading(results), _loss_block(results), _compute_block(results), _choice_block(results)]
    blocks.append(_place_block(results, brief))
    return "\n\n".join(block for block in blocks if block)


def _heading(results: Results) -> str:
    run, base, data = results.run, results.base, results.data
    trained = f"trained on {amount(run.tokens_trained)} tokens in {run.steps} steps, "
    first = f"{run.name}: {run.role} run, {trained if run.steps else 'measured in '}{run.seconds:.0f} s"
    asked = f" (asked for {base.asked})" if base.asked and base.asked != base.name else ""
    second = f"base {shortened(base.name)} from {base.source}{asked}, data {shortened(data.name)} from {data.source}"
    return "\n".join(line[:WIDTH] for line in (first, second))


def _loss_block(results: Results) -> str:
    losses = results.losses
    rows = [_loss_row("dense base", losses.dense)] if losses.dense else []
    rows.append(
        _loss_row(f"{results.run.role}, trained" if results.run.role == "dense" else results.run.role, losses.model)
    )
    for name, difference in (("difference", losses.difference), ("KL to the base", losses.kl)):
        if difference is None:
            continue
        ratio = [math.exp(x) if x is not None else None for x in (difference.nats, difference.low, difference.high)]
        nats = f"{difference.nats:+.4f}", _signed(difference.low, difference.high)
        perplexity = f"×{ratio[0]:.4f}", interval(ratio[1], ratio[2], 4)
        rows.append([name, *nats, *perplexity, str(difference.documents), ""])
    head = ["validation loss", "nats/token", "95 % interval", "perplexity", "95 % interval", "documents", "tokens"]
    return text_table(head, rows)


def _loss_row(name: str, loss: Loss) -> list[str]:
    low, high = (math.exp(x) if x is not None else None for x in (loss.low, loss.high))
    digits = 3 if loss.perplexity < 100 else 0
    nats = f"{loss.nats:.4f}", interval(loss.low, loss.high, 4)
    perplexity = f"{loss.perplexity:.{digits}f}", interval(low, high, digits)
    return [name, *nats, *perplexity, str(loss.documents), amount(loss.tokens)]


def _signed(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"


def _compute_block(results: Results) -> str:
    compute = results.compute
    if compute is None:
        return ""
    head = ["FLOPs per token", "dense", results.run.role, "saved"]
    if results.run.role == "dense":
        return text_table(head[:2], [["MLPs", amount(compute.mlp_dense)], [WHOLE, amount(compute.total_dense)]])
    rows = [
        ["MLPs, router included", amount(compute.mlp_dense), amount(compute.mlp_routed), share(compute.mlp_saved)],
        [WHOLE, amount(compute.total_dense), amount(compute.total_routed), share(compute.total_saved)],
    ]
    table = text_table(head, rows)
    return f"{table}\n{INDENT}active fraction: {executed(compute)} execute"


def _place_block(results: Results, brief: bool) -> str:
    rows = [row for row in results.rows if row.place != MODEL]
    if brief:
        shown = {name: families_of(rows, name)[: METRICS[name].in_brief] for name in {row.metric for row in rows}}
        rows = [row for row in rows if row.family in shown[row.metric]]
    if not rows:
        return ""
    tables = []
    for part in place_tables(rows, results.controls):
        covered = [family for family in part.families if family in results.labels]
        said = ", ".join(f"{visible(name, 11)} {share(results.labels[name].coverage)}" for name in covered)
        tables.append(part.text + (f"\n{INDENT}tokens with a label: {said}" if said else ""))
    notes = control_notes(results.controls)
    if brief:
        notes.append("the results file has more numbers; `eval.py pathways` shows them")
    return "\n\n".join([*tables, "\n".join(INDENT + line for line in notes)])


def _choice_block(results: Results) -> str:
    """The losses with other choices than the routers'."""
    rows = [row for row in results.rows if (row.place, row.metric) == (MODEL, "choice_nats")]
    if not rows:
        return ""
    lines = [["the routers'", number(rows[0].control, 4), "", ""]]
    for row in rows:
        apart = "" if row.difference is None else f"{row.difference:+.4f}"
        limits = _signed(row.difference_low, row.difference_high)
        lines.append([CHOICES.get(row.family, row.family), number(row.value, 4), apart, limits])
    head = ["choice executed in every place", "nats/token", "difference", "95 % interval"]
    return f"{text_table(head, lines)}\n{INDENT}on {amount(rows[0].n or 0)} tokens, nothing trained"
