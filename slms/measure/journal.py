"""Keeps each part of a measurement as soon as it is done, so that a killed measurement continues where it stopped.

A part is filed under what it was made from: model, text, settings, and the program itself. If any of these changes, the
part is measured anew and the old one stays.
"""

import hashlib
import importlib
import json
import logging
import re
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from torch import nn
from torchmetrics import Metric
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.files import replacing
from slms.metrics.states import restore
from slms.models.weights import model_digest
from slms.progress import progress

logger = logging.getLogger(__name__)

Value = TypeVar("Value")
Item = TypeVar("Item")

SHARE = 0.05
"""The share of the time that saving the sums of an unfinished pass may take."""


class Journal:
    """Keeps parts of measurements in a directory, one file each, whole or absent.

    Args:
        directory: the directory to keep them in; None keeps nothing.
        made_from: what all parts depend on, as plain values.
    """

    def __init__(self, directory: Path | None = None, made_from: Mapping[str, Any] = types.MappingProxyType({})):
        self.directory, self.made_from = directory, dict(made_from)
        self.found = 0
        """The number of parts that were there already."""
        self._passes: list[Path] = []

    def part(self, name: str, make: Callable[[], Value], **settings: Any) -> Value:
        """Return the part called `name` if it is kept, else make and keep it; the sums of its passes are then dropped.

        Args:
            make: returns tensors, numbers, text, and lists, tuples, dicts or the package's own records of those.
            settings: what else this part depends on.
        """
        path = self._path(name, settings)
        kept = _read(path)
        if kept is not None and "value" in kept:
            if self.found == 0:
                logger.warning("going on: parts measured before are taken from %s", self.directory)
            self.found += 1
            return kept["value"]
        before = len(self._passes)
        value = make()
        _write(path, {"value": value})
        for spent in self._passes[before:]:
            spent.unlink(missing_ok=True)
        del self._passes[before:]
        return value

    def through(
        self, name: str, items: Iterable[Item], sums: Sequence[Metric], what: str, **settings: Any
    ) -> Iterator[Item]:
        """Yield the items that an earlier, interrupted pass did not reach, after restoring its sums.

        The sums are saved between items, as often as `SHARE` of the time allows.

        Args:
            items: the items, in an order that does not change.
            sums: the metrics, which the caller updates with each item and nothing else.
            what: the name of the pass in progress messages.
        """
        path = self._path(name, settings)
        kept = _read(path) or {}
        done = kept.get("done", 0)
        for metric, states in zip(sums, kept.get("sums", ()), strict=False):
            restore(metric, states)
        cost, last = 0.0, time.monotonic()
        for index, item in enumerate(progress(items, what)):
            if index < done:
                continue
            yield item
            now = time.monotonic()
            if path is not None and cost <= SHARE * (now - last):
                _write(path, {"done": index + 1, "sums": [metric.metric_state for metric in sums]})
                self._passes += [path] if path not in self._passes else []
                last = time.monotonic()
                cost = last - now

    def _path(self, name: str, settings: Mapping[str, Any]) -> Path | None:
        if self.directory is None:
            return None
        made_from = digest(self.made_from | {"part": name} | dict(settings) | _program())
        return self.directory / (re.sub(r"[^\w.+-]+", "-", name) + f"-{made_from}.pt")


def identity(model: nn.Module, blocks: Blocks | None = None) -> dict[str, str]:
    """Digests of a model's weights and shape, and of its text, on which a measurement depends."""
    assert isinstance(model, PreTrainedModel)
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith(("_", "transformers"))}
    made_from = {"model": model_digest(model), "config": digest(config)}
    if blocks is not None:
        text = hashlib.sha256(blocks.input_ids.tobytes())
        for labels in (blocks.doc_ids, *blocks.labels.values()):
            text.update(b"" if labels is None else labels.tobytes())
        made_from["text"] = text.hexdigest()[:16]
    return made_from


def digest(made_from: Mapping[str, Any]) -> str:
    """A short digest of plain values, which names them."""
    text = json.dumps(made_from, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@cache
def _program() -> dict[str, str]:
    """A digest of the code that measures, so that numbers of another version are not mixed with its own."""
    package = Path(__file__).parents[1]
    found = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        found.update(source.read_bytes())
    return {"program": found.hexdigest(), "torch": str(torch.__version__)}


def _write(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        with replacing(path) as temporary:
            torch.save(content, temporary)


def _read(path: Path | None) -> dict[str, Any] | None:
    """The content of a part; None if there is no whole one. It reads only tensors, plain types and our own records, so
    that a file cannot run code."""
    if path is None or not path.is_file():
        return None
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([kind for name in names if (kind := _record(name)) is not None]):
            return torch.load(path, weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError):
        return None


def _record(name: str) -> type | None:
    """A named tuple or dataclass of this package."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("slms."):
        return None
    found = getattr(importlib.import_module(module), kind, None)
    named_tuple = isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")
    return found if named_tuple or (isinstance(found, type) and is_dataclass(found)) else None
