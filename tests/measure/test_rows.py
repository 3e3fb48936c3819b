"""The table of rows: means, controls, log keys and the data frame, against sums by hand."""

import math

import pytest
import torch

from slms.measure.rows import (
    COLUMNS,
    MEAN,
    Row,
    beside,
    beside_control,
    by_place,
    families_of,
    frame,
    log_keys,
    mean_rows,
    row_of,
)
from slms.measure.schema import ControlRow
from slms.metrics.functional import Interval, Score

ROWS = [
    Row("L1.mlp", "purity", value=0.2, low=0.1, high=0.3, null_sd=0.01, n=90, seed=3),
    Row("L1.mlp", "si", "pos", 0.5, n=80, seed=3),
    Row("L1.mlp", "si", "number", 0.75, n=70, seed=3),
    Row("L2.attn", "purity", value=0.4, low=0.3, high=0.7, n=90, seed=3),
    Row("L2.attn", "si", "pos", None, n=80, seed=3),
    Row("L2.attn", "max_load", value=2.0),
]


def test_means_over_places_leave_out_what_was_not_measured():
    means = {row.key: row for row in mean_rows(ROWS)}
    assert set(means) == {(MEAN, "purity", ""), (MEAN, "si", "pos"), (MEAN, "si", "number"), (MEAN, "max_load", "")}
    purity = means[MEAN, "purity", ""]
    assert (purity.value, purity.low, purity.high) == (pytest.approx(0.3), pytest.approx(0.2), pytest.approx(0.5))
    assert (purity.null_sd, purity.ceiling, purity.n, purity.seed) == (0.01, None, 90, 3)
    assert means[MEAN, "si", "pos"].value == 0.5 and means[MEAN, "max_load", ""].n is None
    assert mean_rows([]) == []


def test_logged_are_places_and_means():
    assert log_keys(ROWS, "val") == pytest.approx(
        {
            "val/purity/L1.mlp": 0.2,
            "val/purity/L2.attn": 0.4,
            "val/purity": 0.3,
            "val/si_pos/L1.mlp": 0.5,
            "val/si_pos": 0.5,
            "val/si_number/L1.mlp": 0.75,
            "val/si_number": 0.75,
            "val/max_load/L2.attn": 2.0,
            "val/max_load": 2.0,
        }
    )
    assert log_keys([], "val") == {}


def test_a_control_stands_beside_the_row_of_its_place():
    control = [Row("L2.attn", "purity", value=0.05), Row("L1.mlp", "purity", value=0.01), Row("L9.mlp", "purity")]
    found = beside(ROWS, control)
    assert [row.control for row in by_place(found, "purity").values()] == [0.01, 0.05]
    assert [row.control for row in found if row.metric != "purity"] == [None] * 4


def test_a_control_of_equal_loads_brings_its_sd_and_the_difference():
    control = [ControlRow("L1.mlp", "purity", "", 0.15, 0.01, 0.05, 0.02, 0.08)]
    found = beside_control(ROWS, control)
    row = found[0]
    assert (row.value, row.control, row.control_sd) == (0.2, 0.15, 0.01)
    assert (row.difference, row.difference_low, row.difference_high) == (0.05, 0.02, 0.08)
    assert found[1:] == ROWS[1:]


def test_the_data_frame_has_a_column_a_field():
    table = frame(ROWS)
    assert tuple(table.columns) == COLUMNS and len(table) == 6
    assert table["value"].tolist()[:4] == [0.2, 0.5, 0.75, 0.4] and math.isnan(table["value"][4])
    assert table["n"].sum() == 410 and frame([]).empty


def test_rows_of_scores_intervals_and_numbers():
    nothing = torch.full((2,), torch.nan)
    score = Score(0.5, math.nan, math.nan, 0.1, 0.25, math.inf, 0.9, n=12, units=nothing, units_z=nothing)
    row = row_of("L1.mlp", "si", "pos", score, n=99)
    assert row == Row("L1.mlp", "si", "pos", 0.5, null_mean=0.1, null_sd=0.25, ceiling=0.9, n=12)
    assert (row.z, row.half) == (2.0, None)
    assert row_of("saes/a", "fvu", "", Interval(0.5, 0.25, 0.75, 7)).half == 0.25
    assert row_of("L1.mlp", "x", "", torch.tensor(2.0), n=4) == Row("L1.mlp", "x", value=2.0, n=4)
    assert row_of("L1.mlp", "x", "", math.nan).value is None


def test_families_with_the_highest_mean_first():
    assert families_of(ROWS, "si") == ["number", "pos"] and families_of(ROWS, "purity") == [""]
    assert families_of([Row("L1.mlp", "si", "b"), Row("L1.mlp", "si", "a")], "si") == ["a", "b"]


def test_an_interval_is_in_order():
    with pytest.raises(ValueError, match=r"low is 2; it must be at most high \(1\)"):
        Row("L1.mlp", "si", low=2, high=1)
