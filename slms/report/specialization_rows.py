"""The numbers of `eval.py specialization` as rows: one a place, metric and family, and one a unit."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from slms.measure.classes import GIVEN_TOKEN
from slms.measure.specialization import Measured, Place
from slms.metrics.communities import Modularity
from slms.metrics.functional import Score
from slms.metrics.functional.intervals import student_t
from slms.metrics.functional.score import share_beyond_chance
from slms.metrics.units import N_GROUPS

MEAN = "mean"  # the place of rows that are means over places


class Row(NamedTuple):
    """One number with what it is to be judged by; None where there is none."""

    place: str
    metric: str
    family: str
    """label family of SI, measure of sparsity; else empty"""
    value: float | None
    low: float | None = None
    high: float | None = None
    null_mean: float | None = None
    null_sd: float | None = None
    z: float | None = None
    ceiling: float | None = None
    random_model: float | None = None
    n: int | None = None


def rows_of(measured: Measured, random: Measured | None = None) -> list[Row]:
    """Every place's rows, then their means.

    Args:
        random: the same of a model with random weights: its values stand beside, and z of sparsity, which has no labels
            to permute, is the distance from it over the standard error of both.
    """
    rows = [row for place in measured.places for row in _place_rows(place)]
    if random is not None:
        beside = {row[:3]: row for place in random.places for row in _place_rows(place)}
        rows = [_beside(row, beside.get(row[:3])) for row in rows]
    return rows + mean_rows(rows)


def mean_rows(rows: Iterable[Row]) -> list[Row]:
    """Means over places. Layers of one model are not independent: intervals and null sds are means too, not less."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.metric, row.family), []).append(row)
    means = []
    for (metric, family), members in groups.items():
        columns: dict[str, Any] = {
            name: _mean([getattr(row, name) for row in members]) for name in Row._fields[3:] if name not in ("z", "n")
        }
        value, null_sd = columns["value"], columns["null_sd"]
        if null_sd and value is not None:
            z = (value - columns["null_mean"] if metric in ("q", "q_partition") else value) / null_sd
        else:
            z = _mean([row.z for row in members])
        means.append(Row(MEAN, metric, family, **columns, z=z, n=members[0].n))
    return means


def _place_rows(place: Place) -> list[Row]:
    name, n = place.name, place.n_tokens
    rows = [Row(name, "active", "", float(place.load.mean()), n=n)]
    values, halves = place.sparsity.value._asdict(), place.sparsity.half_width._asdict()
    for measure, value in values.items():
        v, half = float(value), float(halves[measure])
        rows.append(Row(name, "sparsity", measure, _real(v), _real(v - half), _real(v + half), n=n))
    for measure, value in place.sparsity.legacy._asdict().items():
        rows.append(Row(name, "sparsity", f"{measure}_legacy", _real(float(value)), n=n))
    for family, score in place.si.items():
        given = family.endswith(GIVEN_TOKEN)
        rows.append(_score_row(name, "si_given_token" if given else "si", family.removesuffix(GIVEN_TOKEN), score))
        if not given:
            rows.append(
                Row(name, "si_units", family, _real(share_beyond_chance(score.units_z)), null_mean=0.0, n=score.n)
            )
    rows.append(_score_row(name, "coherence", "", place.coherence))
    if place.graph is not None:
        rows.append(_graph_row(name, place.graph))
        rows.append(Row(name, "q_stability", "", _real(place.graph.stability), n=place.graph.n))
    if place.partition is not None:
        found = place.partition
        columns = map(_real, (found.q, torch.nan, torch.nan, found.null_mean, found.null_sd, found.z))
        rows.append(Row(name, "q_partition", "", *columns, n=place.graph.n if place.graph else None))
    return rows


def _score_row(place: str, metric: str, family: str, s: Score) -> Row:
    columns = map(_real, (s.value, s.low, s.high, s.null_mean, s.null_sd, s.z, s.ceiling))
    return Row(place, metric, family, *columns, n=s.n)


def _graph_row(place: str, g: Modularity) -> Row:
    return Row(place, "q", "", *map(_real, (g.q, g.low, g.high, g.null_mean, g.null_sd, g.z)), n=g.n)


def _beside(row: Row, other: Row | None) -> Row:
    if other is None:
        return row
    row = row._replace(random_model=other.value)
    if row.metric == "sparsity" and None not in (row.value, row.low, row.high, other.value, other.low, other.high):
        half = math.hypot(row.high - row.low, other.high - other.low) / 2  # type: ignore[operator]
        error = half / student_t(N_GROUPS - 1)
        row = row._replace(z=_real((row.value - other.value) / error) if error > 0 else None)  # type: ignore[operator]
    return row


UNIT_COLUMNS = ("place", "unit", "active", "coherence", "coherence_z", "community")


def unit_columns(measured: Measured) -> list[str]:
    """Columns of the table of units: fixed ones, three a family, top tokens."""
    families = [f"{column}_{family}" for family in measured.label_names for column in ("si", "z", "class")]
    given = [f"{column}_{family}_given_token" for family in _given(measured) for column in ("si", "z")]
    return [*UNIT_COLUMNS, *families, *given, "top_tokens"]


def unit_rows(measured: Measured, texts: Mapping[int, str]) -> Iterable[Sequence[Any]]:
    """One row a unit, in the order of `unit_columns`; texts: of every token id that occurs."""
    for place in measured.places:
        community = torch.full([place.n_units], -1)
        if place.graph is not None and place.partition is None:
            community[place.in_graph] = place.graph.communities
        for u in range(place.n_units):
            coherence = float(place.coherence.units[u]), float(place.coherence.units_z[u])
            row: list[Any] = [place.name, u, float(place.load[u]), *coherence]
            row.append(int(community[u]) if community[u] >= 0 else None)
            for family, names in measured.label_names.items():
                best = int(place.best_class[family][u])
                score = place.si[family]
                row += [float(score.units[u]), float(score.units_z[u]), names[best] if best >= 0 else None]
            for family in _given(measured):
                score = place.si[family + GIVEN_TOKEN]
                row += [float(score.units[u]), float(score.units_z[u])]
            seen = dict.fromkeys(texts[i] for i in place.top_tokens[u].tolist() if i >= 0)
            yield [*row, "|".join(seen)]


def _given(measured: Measured) -> list[str]:
    return [family.removesuffix(GIVEN_TOKEN) for family in measured.places[0].si if family.endswith(GIVEN_TOKEN)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _real(value: float) -> float | None:
    return value if math.isfinite(value) else None
