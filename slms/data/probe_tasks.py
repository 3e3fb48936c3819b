"""Probe tasks: a manifest of exact prompts, in which an item may have an answer and a foil.

    for task in read_tasks(MANIFEST, ["ioi", "toy_arithmetic"]):
        for item in task.items:
            item.text, item.answer, item.foil

A manifest has one task per line, in JSON (docs/formats.md). Files of minimal pairs can be read as published, one item
per line, with BLiMP's `sentence_good` and `sentence_bad` (Warstadt et al. 2020, arXiv 1912.00582) or `clean_prefix`,
`clean_answer` and `patch_answer` (Marks et al. 2024, arXiv 2403.19647).
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from slms.data.corpora import documents, read_from
from slms.data.stories.probes import KINDS, probes
from slms.data.text import say_shortage
from slms.files import CONFIGS

MOST = 1_000_000
"""items, repetitions or tokens that one line of a manifest can ask for"""
MANIFEST = CONFIGS / "probe_tasks.jsonl"


class Item(NamedTuple):
    """One prompt. `prompt + answer` is right, `prompt + foil` is wrong; both are None if the item asks nothing."""

    prompt: str
    answer: str | None = None
    foil: str | None = None

    @property
    def text(self) -> str:
        """The text for capturing activations: the prompt, or the good sentence of a pair."""
        return self.prompt or self.answer or ""


class Task(NamedTuple):
    """One probe task."""

    task_id: str
    domain: str
    description: str
    items: tuple[Item, ...]
    max_tokens: int | None = None
    """number of tokens of each text to read; None reads all that the model's context holds"""

    @property
    def texts(self) -> list[str]:
        """Return the text of every item."""
        return [item.text for item in self.items]

    @property
    def answered(self) -> tuple[Item, ...]:
        """The items that have an answer and a foil."""
        return tuple(item for item in self.items if item.answer is not None)


class _BadLine(Exception):
    """Says what is wrong with a line; the caller adds its file and number."""


def read_tasks(manifest: str | Path = MANIFEST, task_ids: Sequence[str] | None = None) -> list[Task]:
    """Read the tasks of a manifest, or those called `task_ids` in that order.

    Raises:
        ValueError: the file is missing or empty, a line is not a task (`file:line: …`), or a task id occurs twice or
            not at all (the message then gives the nearest ids).
    """
    path = Path(manifest)
    tasks: dict[str, Task] = {}
    pairs: dict[str, list[Item]] = {}
    for number, line in _lines(path):
        try:
            row = _object(line)
            if "task_id" not in row and (pair := _pair(row, path.stem)):
                pairs.setdefault(pair[0], []).append(pair[1])
                continue
            wanted = task_ids is None or row.get("task_id") in task_ids
            if wanted:
                _place(row.get("source"), path.parent)
            task = _task(row, read_source=wanted)
            if task.task_id in tasks:
                raise _BadLine(f"task_id {task.task_id!r} occurs twice")
            tasks[task.task_id] = task
        except _BadLine as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    tasks |= {name: Task(name, "minimal pairs", path.name, tuple(items)) for name, items in pairs.items()}
    if not tasks:
        raise ValueError(f"{path}: empty; a manifest has one task a line")
    if task_ids is None:
        return list(tasks.values())
    if not task_ids:
        raise ValueError(f"--task_id names no task; {path} has {', '.join(tasks)}")
    for task_id in task_ids:
        if task_id not in tasks:
            near = difflib.get_close_matches(task_id, tasks, n=3, cutoff=0.0)
            raise ValueError(
                f"--task_id {task_id}: not in {path}; the nearest of its {len(tasks)} are {', '.join(near)}"
            )
    return [tasks[task_id] for task_id in dict.fromkeys(task_ids)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, numbered from 1."""
    if not path.is_file():
        raise ValueError(f"probe manifest {path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"probe manifest {path}: not UTF-8 text: {error}") from None
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _object(line: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _BadLine(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _BadLine("not a task: nested too deeply") from None
    if not isinstance(row, dict):
        raise _BadLine("a line must be a JSON object")
    return row


def _pair(row: dict, file_name: str) -> tuple[str, Item] | None:
    """Return the task's name and the item of a line of minimal pairs; None for any other line."""
    if "sentence_good" in row or "sentence_bad" in row:
        good, bad = _text(row, "sentence_good"), _text(row, "sentence_bad")
        name = row.get("UID", file_name)
        return _name(name, "UID") if isinstance(name, str) else file_name, _checked(Item("", good, bad))
    if "clean_prefix" in row:
        texts = (_text(row, field) for field in ("clean_prefix", "clean_answer", "patch_answer"))
        return file_name, _checked(Item(*texts))
    return None


_FIELDS = {"task_id", "domain", "description", "source", "max_tokens", "repeat"}


def _task(row: dict, read_source: bool) -> Task:
    if unknown := sorted(set(row) - _FIELDS):
        raise _BadLine(f"unknown field {unknown[0]!r}; a task has {', '.join(sorted(_FIELDS))}")
    name = _name(_text(row, "task_id"), "task_id")
    source = row.get("source")
    if not isinstance(source, dict):
        raise _BadLine("field 'source' is missing or no object")
    read = _SOURCES.get(str(source.get("type")))
    if read is None:
        raise _BadLine(f"source.type is {source.get('type')!r}; it must be one of {', '.join(_SOURCES)}")
    limit = None if row.get("max_tokens") is None else _count(row, "max_tokens")
    items = tuple(read(source)) * _count(row, "repeat", 1) if read_source else ()
    if read_source and not items:
        raise _BadLine(f"task {name!r} has no items")
    return Task(name, _text(row, "domain", ""), _text(row, "description", ""), items, limit)


def _prompt(source: dict) -> list[Item]:
    return [Item(_text(source, "text"))]


def _prompt_list(source: dict) -> list[Item]:
    prompts = _list(source, "prompts")
    if not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        raise _BadLine("source.prompts must hold texts that are not empty")
    return [Item(prompt) for prompt in prompts]


def _items(source: dict) -> list[Item]:
    rows = _list(source, "items")
    made = []
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) - {"prompt", "answer", "foil"}:
            raise _BadLine(f"source.items[{i}] must be an object of prompt, answer and foil")
        if ("answer" in row) != ("foil" in row):
            raise _BadLine(f"source.items[{i}] needs both an answer and a foil, or neither")
        texts = {field: _text(row, field, within=f"source.items[{i}].") for field in row}
        made.append(_checked(Item(**({"prompt": ""} | texts))))
    return made


def _stories(source: dict) -> list[Item]:
    kind = _text(source, "kind")
    if kind not in KINDS:
        raise _BadLine(f"source.kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    seed = source.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise _BadLine(f"source.seed is {seed!r}; it must be a whole number")
    return [Item(p.prompt, p.answer, p.foil) for p in probes(kind, _count(source, "n"), seed)]


def _place(source: Any, beside: Path) -> None:
    """Find the file that a source names; a manifest may name only files below itself or the current directory."""
    name = source.get("name") if isinstance(source, dict) and source.get("type") == "dataset" else None
    if not isinstance(name, str):
        return
    try:
        if (beside / name).is_file():
            source["name"] = name = str(beside / name)
        place = Path(name).expanduser().resolve()
        inside = any(place.is_relative_to(root.resolve()) for root in (beside, Path()))
    except (ValueError, RuntimeError, OSError):  # the name has a NUL, an unknown home, or is too long
        inside = False
    if not inside:
        raise _BadLine(
            f"source.name is {name[:80]!r}; it must be a corpus, or a file below the manifest or the current directory"
        )


def _dataset(source: dict) -> list[Item]:
    name, split = _text(source, "name"), _text(source, "split", "validation")
    texts = documents(name, split, text_field=_text(source, "text_key", "text"), config=source.get("config"))
    wanted = _count(source, "num_docs")
    try:
        items = [Item(text.text) for text in islice(filter(lambda d: d.text.strip(), texts), wanted)]
    except ValueError as error:
        raise _BadLine(str(error)) from None
    if items and len(items) < wanted:
        say_shortage(read_from(name, split), len(items), wanted, "documents")
    return items


_SOURCES: dict[str, Callable[[dict], list[Item]]] = {
    "prompt": _prompt,
    "prompt_list": _prompt_list,
    "items": _items,
    "stories": _stories,
    "dataset": _dataset,
}


def _text(row: dict, field: str, default: str | None = None, within: str = "") -> str:
    value = row.get(field, default)
    if not isinstance(value, str) or (default is None and not value):
        raise _BadLine(f"field {within + field!r} is missing, empty or no text")
    return value


def _name(text: str, field: str) -> str:
    """Return a task's name; it may not be a path, because results are filed under it."""
    if not re.fullmatch(r"[\w+ -][\w.+ -]{0,99}", text):
        raise _BadLine(f"{field} is {text[:80]!r}; it must be letters, digits, spaces and _ - + . (at most 100)")
    return text


def _list(row: dict, field: str) -> list[Any]:
    value = row.get(field)
    if not isinstance(value, list):
        raise _BadLine(f"source.{field} is missing or no list")
    return value


def _count(row: dict, field: str, default: int | None = None) -> int:
    value = row.get(field, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _BadLine(f"{field} is {value!r}; it must be a whole number of at least 1")
    if value > MOST:
        raise _BadLine(f"{field} is {value:,}; it must be at most {MOST:,}")
    return value


def _checked(item: Item) -> Item:
    if item.answer == item.foil and item.answer is not None:
        raise _BadLine(f"answer and foil are both {item.answer!r}")
    if not item.text.strip():
        raise _BadLine("an item needs a prompt, or an answer and a foil")
    return item
