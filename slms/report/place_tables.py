"""Makes tables with one line for each place and, for each metric, its value beside the controls of equal load."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from slms.measure.metrics import METRICS
from slms.measure.rows import MEAN, Row, by_place, families_of, places_of
from slms.measure.schema import Control
from slms.models.place import short_names
from slms.report.tables import INDENT, WIDTH, amount, cell, number, text_table
from slms.report.words import visible

HEADS = {"random_router": "− random", "geometry": "− geometry"}
"""Controls that tables show, each with the heading of the differences to it."""


def control_notes(controls: Mapping[str, Control]) -> list[str]:
    """Lines that say what the differences in a table are."""
    notes = ["purity, SI: chance subtracted; /ceiling: of the most that these loads allow", "max load: over the mean"]
    shown = {HEADS[name]: control for name, control in controls.items() if name in HEADS}
    if shown:
        seeds = {f"{control.seeds} seed{'s' * (control.seeds != 1)}" for control in shown.values()}
        tokens = {amount(control.tokens) for control in shown.values()}
        about = f"± 95 % over documents and {' and '.join(sorted(seeds))}, on {' and '.join(sorted(tokens))} tokens"
        notes += [f"{head}: minus {control.meaning}" for head, control in shown.items()] + [about]
    return notes


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
