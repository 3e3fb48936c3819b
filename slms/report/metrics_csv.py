"""Reads and writes `metrics.csv`: a row (step, epoch, stage, metric, place, value) for every number a run logs."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from slms.files import write_atomic

METRICS_FILE = "metrics.csv"


class Logged(NamedTuple):
    """One number with key `stage/metric/place` at an optimizer step. The columns have the order of the fields."""

    step: int
    epoch: int
    stage: str
    metric: str
    place: str
    value: float


def split_key(key: str) -> tuple[str, str, str]:
    """Split a log key into stage, metric and place.

    >>> split_key("val/purity/L3.mlp"), split_key("train/loss"), split_key("lr-AdamW")
    (('val', 'purity', 'L3.mlp'), ('train', 'loss', ''), ('train', 'lr-AdamW', ''))
    """
    parts = key.split("/", 2)
    stage, metric, place = (["train"] * (len(parts) == 1) + parts + ["", ""])[:3]
    return stage, metric, place


def append_rows(path: Path | str, rows: Iterable[Logged]) -> None:
    """Append `rows` in one write, after a header if the file is new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        file.write(_format(rows, header=file.tell() == 0))


def write_rows(path: Path | str, rows: Iterable[Logged]) -> Path:
    """Replace the content of the file with `rows`, atomically."""
    return write_atomic(path, _format(rows, header=True))


def read_rows(path: Path | str, *, torn_tail: bool = False) -> list[Logged]:
    """Read all rows; raises ValueError, naming file and line, if a line is no row.

    `torn_tail` skips the last line, and only that, if a killed run left it unfinished (without its line end).
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if torn_tail and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
    if not text:
        return []
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""))
    except csv.Error as error:
        raise ValueError(f"{path}: is not CSV ({error})") from None
    if header != list(Logged._fields):
        raise ValueError(f"{path}:1: the header must be {','.join(Logged._fields)}")
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=2)]


def _parse(line: list[str], where: str) -> Logged:
    if len(line) != len(Logged._fields):
        raise ValueError(f"{where}: has {len(line)} columns; it must have {len(Logged._fields)}")
    try:
        step, epoch, stage, metric, place, value = line
        return Logged(int(step), int(epoch), stage, metric, place, float(value))
    except ValueError:
        raise ValueError(f"{where}: step and epoch must be whole numbers and value a number") from None


def _format(rows: Iterable[Logged], header: bool) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow(Logged._fields)
    for row in rows:
        writer.writerow([*row[:-1], repr(float(row.value))])
    return buffer.getvalue()
