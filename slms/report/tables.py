"""Makes the closing table: plain text of at most 100 columns, the same on a screen and in a file."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from slms.measure.metrics import METRICS
from slms.measure.rows import MEAN, MODEL, Row, by_place, families_of, places_of
from slms.measure.schema import Compute, Control, Loss, Results
from slms.models.card import shortened
from slms.models.place import short_names
from slms.report.words import visible

WIDTH = 100
INDENT = "  "
WHOLE = "whole model, head included"
HEADS = {"random_router": "− random", "geometry": "− geometry"}
"""Controls that tables show, each with the heading of the differences to it."""
CHOICES = {"oracle": "largest outputs (oracle)", "random_router": "load-matched random routers"}


def closing_table(results: Results, brief: bool = False) -> str:
    """A run's results as text: loss against the dense base, compute, and metrics by place with their controls.

    brief: leave out what `Metric.in_brief` leaves to `eval.py pathways`; the results file holds all.
    """
    blocks = [_heading(results), _loss_block(results), _compute_block(results), _choice_block(results)]
    blocks.append(_place_block(results, brief))
    return "\n\n".join(block for block in blocks if block)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, indent: str = INDENT) -> str:
    """Pad columns to their widest cell, the first `left` flush left, the rest flush right, with a rule under the head.

    >>> print(text_table(["run", "nats"], [["dense", "1.51"], ["routed", "1.5300"]], indent=""))
    run       nats
    ------  ------
    dense     1.51
    routed  1.5300
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    lines = []
    for row in [head, rule, *rows]:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    """A value for a cell; "–" if it was not measured."""
    return "–" if value is None or not math.isfinite(value) else f"{value:z.{digits}f}"


def share(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def executed(compute: Compute) -> str:
    """What executes for a token, in words.

    >>> executed(Compute(0.5, 8.0, 4.0, 9.0, 5.0, 0.5, 0.4, head_fraction=0.25))
    '50.0 % of all MLP neurons and 25.0 % of all attention heads'
    """
    heads = "" if compute.head_fraction is None else f" and {share(compute.head_fraction)} of all attention heads"
    return f"{share(compute.active_fraction)} of all MLP neurons{heads}"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval for a cell; `n/a` if there is none, as with a single document."""
    if low is None or high is None:
        return ""
    return f"[{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) and math.isfinite(high) else "n/a"


def cell(row: Row) -> str:
    """A row's value as `METRICS` shows it; "–" where it was not measured."""
    return "–" if row.value is None else METRICS[row.metric].style.format(row.value).replace("%", " %")


def amount(value: float) -> str:
    """A count in at most five characters.

    >>> amount(950), amount(4_915_200), amount(2.6e11)
    ('950', '4.92M', '260G')
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


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


def control_notes(controls: Mapping[str, Control]) -> list[str]:
    """Lines that say what the differences in a table are."""
    notes = ["purity, SI: chance subtracted; /ceiling: of the most that these loads allow", "max load: over the mean"]
    shown = {HEADS[name]: control for name, control in controls.items() if name in HEADS}
    if shown:
        seeds = {f"{control.seeds} seeds" for control in shown.values()}
        tokens = {amount(control.tokens) for control in shown.values()}
        about = f"± 95 % over documents and {' and '.join(sorted(seeds))}, on {' and '.join(sorted(tokens))} tokens"
        notes += [f"{head}: minus {control.meaning}" for head, control in shown.items()] + [about]
    return notes


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


class Columns(NamedTuple):
    """The columns that show one metric against one family: its value and, if it is compared, what it stands beside."""

    family: str
    heads: list[str]
    cells: dict[str, list[str]]
    """by place"""


class PlaceTable(NamedTuple):
    """A table of some metrics, one line per place."""

    families: list[str]
    text: str


def place_tables(rows: Sequence[Row], controls: Mapping[str, Control] | None = None) -> list[PlaceTable]:
    """Tables, at most WIDTH characters wide, of every metric that has a heading; those without families come first."""
    names = place_names(rows)
    tables = []
    for columns in (flat_columns(rows, controls), family_columns(rows, controls)):
        for part in packed(columns, max(map(len, names.values()), default=0)):
            head = ["place", *(head for one in part for head in one.heads)]
            lines = [[name, *(cell for one in part for cell in one.cells[place])] for place, name in names.items()]
            tables.append(PlaceTable(list(dict.fromkeys(one.family for one in part)), text_table(head, lines)))
    return tables


def place_names(rows: Iterable[Row]) -> dict[str, str]:
    """The name of each place in a table, the mean last."""
    found = list(rows)
    places = places_of(found)
    names = dict(zip(places, (visible(name, 22) for name in short_names(places)), strict=True))
    return names | ({MEAN: MEAN} if any(row.place == MEAN for row in found) else {})


def flat_columns(rows: Sequence[Row], controls: Mapping[str, Control] | None = None) -> list[Columns]:
    """The columns of the metrics that have a heading and no families."""
    measured = {row.metric for row in rows if not row.family}
    shown = {name: metric.heading for name, metric in METRICS.items() if name in measured and metric.heading}
    return [_columns(rows, name, "", heading, controls) for name, heading in shown.items()]


def family_columns(rows: Sequence[Row], controls: Mapping[str, Control] | None = None) -> list[Columns]:
    """The columns of the metrics that have families; a metric that names none shows the highest mean first."""
    found = []
    for name, metric in METRICS.items():
        measured = [family for family in families_of(rows, name) if family]
        for family in (f for f in metric.families or measured if f in measured and metric.heading):
            heading = metric.families.get(family, f"{metric.heading} {visible(family, 11)}")
            found.append(_columns(rows, name, family, heading, controls))
    return found


def _columns(
    rows: Sequence[Row], name: str, family: str, heading: str, controls: Mapping[str, Control] | None
) -> Columns:
    found = by_place(rows, name, family)
    metric, names = METRICS[name], place_names(rows)
    of_place = {place: found.get(place, Row(place, name)) for place in names}
    columns = {heading: {place: cell(row) for place, row in of_place.items()}}
    if metric.compared:
        columns |= _beside_controls(of_place, name, family, controls or {})
    return Columns(family, list(columns), {place: [cells[place] for cells in columns.values()] for place in names})


def _beside_controls(
    rows: Mapping[str, Row], metric: str, family: str, controls: Mapping[str, Control]
) -> dict[str, dict[str, str]]:
    """What stands beside a compared value: differences to controls of equal load, else its interval, null, control."""
    columns: dict[str, dict[str, str]] = {}
    for control, head in HEADS.items():
        known = controls[control].rows if control in controls else []
        apart = {
            r.place: _apart(r.difference, r.difference_low, r.difference_high)
            for r in known
            if (r.metric, r.family) == (metric, family)
        }
        if apart:
            columns[head] = {place: apart.get(place, "") for place in rows}
    if not columns:
        columns["± 95 %"] = {place: "" if row.half is None else f"{row.half:.3f}" for place, row in rows.items()}
        columns["null"] = {place: number(row.null_mean) for place, row in rows.items()}
        if any(row.control is not None for row in rows.values()):
            columns["control"] = {place: cell(replace(row, value=row.control)) for place, row in rows.items()}
    elif any(row.ceiling not in (None, 1.0) for row in rows.values()):
        columns["/ceiling"] = {place: _of_ceiling(row) for place, row in rows.items()}
    return columns


def _apart(value: float | None, low: float | None, high: float | None) -> str:
    """A difference with half the width of its interval: +.012±.004."""
    if value is None:
        return "–"
    half = "" if low is None or high is None else f"±{(high - low) / 2:.3f}".replace("0.", ".")
    return f"{value:+z.3f}".replace("0.", ".") + half


def _of_ceiling(row: Row) -> str:
    return "" if row.value is None or not row.ceiling else f"{100 * row.value / row.ceiling:z.0f} %"


def packed(columns: Iterable[Columns], first: int) -> list[list[Columns]]:
    """Distribute the columns over tables of at most WIDTH characters, of which `first` go to the first column."""
    tables: list[list[Columns]] = []
    used = WIDTH
    for one in columns:
        widths = zip(one.heads, *one.cells.values(), strict=True)
        size = sum(max(map(len, cells)) + 2 for cells in widths)
        if used + size > WIDTH:
            tables.append([])
            used = len(INDENT) + max(first, len("place"))
        tables[-1].append(one)
        used += size
    return tables
