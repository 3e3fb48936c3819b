"""metrics.csv has tidy rows that are appended and read back; a torn last line is skipped only if asked."""

import math

import pytest

from slms.report.metrics_csv import Logged, append_rows, read_rows, split_key, write_rows

ROWS = [Logged(10, 0, "train", "loss/total", "", 1.25), Logged(20, 1, "val", "purity", "L3.mlp", 0.1 + 0.2)]


def test_append_then_read_is_exact(tmp_path):
    path = tmp_path / "run" / "metrics.csv"
    append_rows(path, ROWS[:1])
    append_rows(path, ROWS[1:])
    assert path.read_text().splitlines()[0] == "step,epoch,stage,metric,place,value"
    assert read_rows(path) == ROWS


def test_write_replaces(tmp_path):
    path = tmp_path / "metrics.csv"
    append_rows(path, ROWS)
    write_rows(path, ROWS[1:])
    assert read_rows(path) == ROWS[1:]


def test_not_a_number_and_odd_names_survive(tmp_path):
    path = tmp_path / "metrics.csv"
    append_rows(
        path, [Logged(0, 0, "val", 'a,"b"', "L0\nx", float("nan")), Logged(0, 0, "val", "m", "", float("-inf"))]
    )
    first, second = read_rows(path)
    assert first.metric == 'a,"b"' and first.place == "L0\nx" and math.isnan(first.value)
    assert second.value == -math.inf


@pytest.mark.parametrize("cut", range(1, 22))
def test_torn_tail_loses_the_last_row_only(tmp_path, cut):
    path = tmp_path / "metrics.csv"
    write_rows(path, [ROWS[0], ROWS[0]])
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_rows(path, torn_tail=True) == [ROWS[0]]


def test_a_torn_tail_is_an_error_otherwise(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,stage,metric,place,value\n10,0,val")
    with pytest.raises(ValueError, match=r"metrics.csv:2: has 3 columns; it must have 6"):
        read_rows(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n", "metrics.csv:1: the header must be step,epoch,stage,metric,place,value"),
        ("step,epoch,stage,metric,place,value\n1,0,val,m,,x\n", "metrics.csv:2: step and epoch must be whole numbers"),
        ("step,epoch,stage,metric,place,value\n1,0,val,m,,1\n1.5,0,val,m,,1\n", "metrics.csv:3: step and epoch"),
        ("\x00,1\n", "metrics.csv"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, message):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_absent(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv: cannot be read \(No such file"):
        read_rows(tmp_path / "none.csv")
    (tmp_path / "empty.csv").touch()
    assert read_rows(tmp_path / "empty.csv") == []


@pytest.mark.parametrize(
    "key, parts",
    [
        ("val/purity/L3.mlp", ("val", "purity", "L3.mlp")),
        ("train/loss/balance", ("train", "loss", "balance")),
        ("val/loss", ("val", "loss", "")),
        ("val/si/pos/L3", ("val", "si", "pos/L3")),
        ("epoch", ("train", "epoch", "")),
    ],
)
def test_split_key(key, parts):
    assert split_key(key) == parts
