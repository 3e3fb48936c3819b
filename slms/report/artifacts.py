"""Writes a measurement of `eval.py` to `artifacts/<command>/<subject>/<text>/`: rows as CSV, everything as JSON."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slms.files import write_atomic
from slms.json_values import to_json_values
from slms.measure.journal import digest


def artifact_directory(output_dir: str | Path, command: str, subject: str) -> Path:
    """The directory of one subject's results: its name without forbidden characters; inside a run, with the run's name.

    >>> artifact_directory("artifacts", "layers", "EleutherAI/pythia-70m").as_posix()
    'artifacts/layers/EleutherAI-pythia-70m'
    """
    path = Path(subject)
    if path.is_dir():
        path = path.resolve()
        run = next((p for p in (path, *path.parents[:2]) if (p / "config.yaml").is_file()), None)
        subject = "-".join([path.name] if run is None else [*run.parts[-2:], *path.relative_to(run).parts])
    return Path(output_dir) / command / (_file_name(subject) or "model")


def own_directory(output_dir: str | Path, command: str, subject: str, text: str, made_from: Mapping[str, Any]) -> Path:
    """The directory of one measurement inside its subject's: `text` and a digest of all that the results depend on.

    Every model, text and setting has its own, even if names are alike, so no result replaces another.
    """
    return artifact_directory(output_dir, command, subject) / f"{_file_name(text)}-{digest(made_from)}"


def _file_name(words: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", words).strip("-.")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV with one header line; a value that is None or not finite is an empty cell."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if (plain := to_json_values(value)) is None else plain for value in row] for row in rows)
    return buffer.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write `csv_text` to a file, whole or not at all."""
    return write_atomic(path, csv_text(columns, rows))


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write JSON to a file, whole or not at all; dataclasses and numbers that are not finite become plain values."""
    return write_atomic(path, json.dumps(to_json_values(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
