"""Every measured number of a place is one row of one long table, and everything that shows numbers reads rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MEAN = "mean"  # the place that rows have which are means over places
MODEL = "model"  # the place of rows of a whole model


@dataclass(frozen=True)
class Row:
    """One number, and the numbers to compare it with; null if there are none."""

    place: str  # `L3.mlp`, the name of a coder, `model` as a whole, or `mean` over places
    metric: str
    family: str = ""  # family of classes, or whatever else the metric has several of; else empty
    value: float | None = None
    low: float | None = None  # 95 % interval over documents
    high: float | None = None
    null_mean: float | None = None  # what chance scores, by the metric's own null
    null_sd: float | None = None  # standard deviation of the value under that null
    control: float | None = None  # the same number for the row's rival: random routers, random weights, random sets
    control_sd: float | None = None  # standard deviation of the control over its seeds
    difference: float | None = None  # value − control, both on the same tokens, which may be a sample of the row's
    difference_low: float | None = None  # 95 % interval over documents and the control's seeds
    difference_high: float | None = None
    ceiling: float | None = None  # the most that the number can be
    n: int | None = None  # tokens (or what the metric counts) behind the number
    seed: int | None = None  # of the run that was measured

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low is {self.low}; it must be at most high ({self.high})")

    @property
    def key(self) -> tuple[str, str, str]:
        """Place, metric and family, which distinguish a row from all others."""
        return self.place, self.metric, self.family

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def z(self) -> float | None:
        """value / null_sd; it grows with n, so it is derived and not stored."""
        return self.value / self.null_sd if self.value is not None and self.null_sd else None


COLUMNS = tuple(field.name for field in fields(Row))
NUMBERS = tuple(name for name in COLUMNS if name not in ("place", "metric", "family", "n", "seed"))


def row_of(place: str, metric: str, family: str, found: Any, n: int | None = None, seed: int | None = None) -> Row:
    """Make a row from a number, or from an object that has some of a row's numbers as attributes (`Score`, `Interval`).

    A number that is not finite was not measurable and becomes None.

    >>> row_of("L3.mlp", "entropy", "", 5.25, n=100)
    Row(place='L3.mlp', metric='entropy', family='', value=5.25, low=None, ..., n=100, seed=None)
    """
    if not hasattr(found, "value"):
        return Row(place, metric, family, finite(found), n=n, seed=seed)
    numbers = {name: finite(getattr(found, name, None)) for name in NUMBERS}
    return Row(place, metric, family, **numbers, n=getattr(found, "n", n), seed=seed)


def finite(value: Any) -> float | None:
    """The number as a float; None if there is none, or if it is NaN or infinite."""
    return float(value) if value is not None and math.isfinite(value) else None


def beside(rows: Iterable[Row], control: Iterable[Row]) -> list[Row]:
    """The rows, each with the value of the control at the same place."""
    known = {row.key: row.value for row in control}
    return [replace(row, control=known.get(row.key, row.control)) for row in rows]


def beside_control(rows: Iterable[Row], control: Iterable[Any]) -> list[Row]:
    """The rows, each with the control's number of the same key and the difference to it."""
    known = {(one.place, one.metric, one.family): one for one in control}
    found = []
    for row in rows:
        one = known.get(row.key)
        if one is not None:
            apart = {name: getattr(one, name) for name in ("difference", "difference_low", "difference_high")}
            row = replace(row, control=one.value, control_sd=one.sd, **apart)
        found.append(row)
    return found


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """The rows as a data frame, whose columns are the fields of a row; what was not measured is NaN."""
    import pandas as pd  # half a second, which `--help` need not wait for

    table = pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))
    return table.astype(dict.fromkeys(NUMBERS, float) | {"n": "Int64", "seed": "Int64"})


def mean_rows(rows: Iterable[Row]) -> list[Row]:
    """Means over places. Intervals and null sds are averaged too, because places of one model are not independent."""
    import pandas as pd

    grouped = frame(rows).groupby(["metric", "family"], sort=False)
    means, first = grouped[list(NUMBERS)].mean(), grouped[["n", "seed"]].first()
    rows = []
    for (metric, family), values, counts in zip(means.index, means.to_numpy(), first.to_numpy(), strict=True):
        numbers = {name: finite(value) for name, value in zip(NUMBERS, values, strict=True)}
        n, seed = (None if pd.isna(count) else int(count) for count in counts)
        rows.append(Row(MEAN, metric, family, **numbers, n=n, seed=seed))
    return rows


def places_of(rows: Iterable[Row]) -> list[str]:
    """The places in their order, means left out."""
    return [place for place in dict.fromkeys(row.place for row in rows) if place != MEAN]


def families_of(rows: Iterable[Row], metric: str) -> list[str]:
    """The families against which a metric was measured, the highest mean first (then by name)."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == metric and row.place != MEAN:
            found.setdefault(row.family, []).extend([] if row.value is None else [row.value])
    means = {family: sum(values) / len(values) if values else -math.inf for family, values in found.items()}
    return sorted(sorted(means), key=lambda family: -means[family])


def by_place(rows: Iterable[Row], metric: str, family: str = "") -> dict[str, Row]:
    """The rows of one metric and family, by place."""
    return {row.place: row for row in rows if (row.metric, row.family) == (metric, family)}


def log_keys(rows: Sequence[Row], stage: str) -> dict[str, float]:
    """Log keys and values of rows: `stage/metric/place` (the family follows the metric), the mean as `stage/metric`.

    >>> log_keys([Row("L1.mlp", "si", "pos", 0.25), Row("L3.mlp", "si", "pos", 0.5)], "val")
    {'val/si_pos/L1.mlp': 0.25, 'val/si_pos/L3.mlp': 0.5, 'val/si_pos': 0.375}
    """
    if not rows:
        return {}
    return {
        f"{stage}/{log_name(row)}" + ("" if row.place == MEAN else f"/{row.place}"): row.value
        for row in [*rows, *mean_rows(rows)]
        if row.value is not None
    }


def log_name(row: Row) -> str:
    """A metric with its family as one word, as in log keys: `si_pos`."""
    return f"{row.metric}_{row.family}" if row.family else row.metric
