"""Writes `llm_routing_results.json` atomically, and reads it with errors of one line."""

import json
import math
from pathlib import Path
from typing import Any

from slms.files import write_atomic
from slms.json_values import from_json_values, to_json_values
from slms.measure.schema import SCHEMA, Results
from slms.report.results_schema_1 import from_schema_1
from slms.report.results_schema_2 import from_schema_2

RESULTS_FILE = "llm_routing_results.json"
FIGURE_FILE = "llm_monosemanticity.png"
LINE = 120  # characters of a line of JSON that is not a row of numbers


def write_results(results: Results, path: Path | str) -> Path:
    """Write `results` as JSON to `path` (a file, or a run directory). Numbers that are not finite become null."""
    text = _render(to_json_values(results))
    # a tokenizer may decode half a character into a lone surrogate, which UTF-8 cannot hold
    return write_atomic(_file(path), text.encode("utf-8", "backslashreplace") + b"\n")


def read_results(path: Path | str) -> Results:
    """Read and check a results file (or a run directory that holds one), of this schema or an earlier one.

    Raises ValueError, one line, naming the file and what is wrong with it: absent, not JSON, a field missing,
    unknown or of the wrong kind, or written by a newer version.
    """
    path = _file(path)
    try:
        data = json.loads(path.read_bytes(), parse_constant=_not_finite, parse_float=_finite)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ValueError(f"{path}: is not JSON (nested too deeply)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON (line {error.lineno}: {error.msg})") from None
    except ValueError as error:  # not UTF-8, a number that is not finite or has thousands of digits
        raise ValueError(f"{path}: is not JSON ({str(error).splitlines()[0]})") from None
    version = data.get("schema", data.get("schema_version")) if isinstance(data, dict) else None
    if type(version) is int and version > SCHEMA:
        raise ValueError(f"{path}: schema is {version}; this slms reads up to {SCHEMA}")
    try:
        return from_json_values(Results, _current(data, version))
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def _current(data: Any, version: Any) -> Any:
    """The content in the form of this schema."""
    if version == 1:
        data = from_schema_1(data)
    return from_schema_2(data) if version in (1, 2) else data


def _render(value: Any, depth: int = 0) -> str:
    """Render JSON that people can read too: a value that fits on one line, or is a row, stays on one line."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    row = not any(isinstance(item, dict | list) for item in items)
    if not items or row or len(flat) + depth <= LINE:
        return flat
    pad = " " * (depth + 1)
    if isinstance(value, dict):
        lines = [
            f"{pad}{json.dumps(key, ensure_ascii=False)}: {_render(item, depth + 1)}" for key, item in value.items()
        ]
        return "{\n" + ",\n".join(lines) + f"\n{' ' * depth}}}"
    return "[\n" + ",\n".join(pad + _render(item, depth + 1) for item in items) + f"\n{' ' * depth}]"


def _file(path: Path | str) -> Path:
    path = Path(path)
    return path / RESULTS_FILE if path.is_dir() else path


def _not_finite(word: str) -> Any:
    raise ValueError(f"{word} is not a number JSON allows")


def _finite(word: str) -> float:
    if not math.isfinite(float(word)):
        return _not_finite(word)
    return float(word)
