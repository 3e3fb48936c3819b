"""Turns command lines as people type them into the form that jsonargparse reads."""

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from slms.cli import Parser

LEAST = {
    "batch_size": 1,
    "block_size": 2,  # a token to predict, and one before it
    "budget_tokens": 1,
    "calibration_tokens": 1,
    "control_seeds": 0,
    "control_tokens": 0,
    "limit": 1,
    "n_nulls": 2,
    "n_random": 1,
    "n_strongest": 1,
    "n_tokens": 1,
    "sample_tokens": 1,
    "seconds": 0,
    "shard_tokens": 1,
    "shots": 0,
    "threshold": 0,
}
"""Option → its least value, in every command that has it."""

Command = TypeVar("Command", bound=Callable[..., Any])


class CommandParser(Parser):
    """The parser of the commands, which refuses numbers below `LEAST` before anything is read."""

    def parse_args(self, *args, **kwargs):
        """Parse, then compare with `LEAST`."""
        config = super().parse_args(*args, **kwargs)
        for name, least in LEAST.items():
            value = config.get(name)
            if value is not None and not value >= least:  # NaN is not
                self.error(f"--{name} {value}: it must be at least {least}")
        return config


def published(**spellings: str) -> Callable[[Command], Command]:
    """Let a command also accept the option names of the scripts that it replaces: published spelling → option."""

    def mark(function: Command) -> Command:
        function.spellings = spellings  # type: ignore[attr-defined]  # a mark for `command_lines`
        return function

    return mark


def command_lines(args: list[str], function: Callable[..., Any]) -> list[list[str]]:
    """Split a command line into calls of its command, each with every option as `--name=value`.

    You may give the first parameter without its name. Several words there form one list if the parameter is a list;
    otherwise each word is a subject with its own call, so that `runs/*` measures every run. `--task-id` means
    `--task_id`. The items of a list follow their option, separated by spaces, by commas or by repeating the option.
    If the command has a parameter `overrides`, an option with a dot in its name is an item of it, as it stands.

    >>> def compare(runs: list[str], output_dir: str = "artifacts"): ...
    >>> command_lines(["runs/a", "runs/b", "--output-dir=x"], compare)
    [['--output_dir=x', '--runs=["runs/a", "runs/b"]']]
    >>> def layers(model: str, families: list[str] | None = None): ...
    >>> command_lines(["gpt2", "m", "--families", "pos,number"], layers)
    [['--model=gpt2', '--families=["pos", "number"]'], ['--model=m', '--families=["pos", "number"]']]
    >>> def study(config: str, overrides: list[str] | None = None): ...
    >>> command_lines(["x", "--model.k=2", "--trainer.max_steps", "30"], study)
    [['--config=x', '--overrides=["--model.k=2", "--trainer.max_steps=30"]']]
    """
    parameters = inspect.signature(function).parameters
    spellings: dict[str, str] = getattr(function, "spellings", {})
    lists = {name for name, parameter in parameters.items() if "list[" in str(parameter.annotation)}
    first = next(iter(parameters), "")
    subjects = list(takewhile(lambda word: not word.startswith("-"), args))
    rest = args[len(subjects) :]
    if first in lists:
        rest, subjects = [*([f"--{first}", *subjects] if subjects else []), *rest], []
    options, items = list[str](), dict[str, list[str]]()
    while rest:
        name, equals, value = rest[0].partition("=")
        if "overrides" in parameters and name.startswith("--") and "." in name:
            after = [] if equals else rest[1:2]
            items.setdefault("--overrides", []).append("=".join([rest[0], *after]))
            rest = rest[1 + len(after) :]
            continue
        if name.startswith("--"):
            name = name[2:].replace("-", "_")
            name = f"--{spellings.get(name, name)}"
        words = list(takewhile(lambda word: not word.startswith("-"), rest[1:]))
        if name[2:] in lists and (equals or words):
            given = [value] if equals else words
            if len(given) == 1 and given[0].startswith(("[", "null")):
                options.append(f"{name}={given[0]}")
            else:
                items.setdefault(name, []).extend(_parted(given))
            rest = rest[1:] if equals else rest[1 + len(words) :]
        else:
            options.append(name + equals + value)
            rest = rest[1:]
    options += [f"{name}={json.dumps(given)}" for name, given in items.items()]
    return [[f"--{first}={subject}", *options] for subject in subjects] or [options]


def _parted(words: Iterable[str]) -> list[str]:
    """Split words at their commas, except those that name a file or directory."""
    parts = [part for word in words for part in ([word] if Path(word).exists() else word.split(","))]
    return [part.strip() for part in parts if part.strip()] or list(words)


def parse_densities(words: Sequence[str]) -> list[float]:
    """Read words such as `0.35` or `first:last:step` into ascending densities.

    >>> parse_densities(["0.1:0.4:0.1"]), parse_densities(["0.5", "0.35"])
    ([0.1, 0.2, 0.3, 0.4], [0.35, 0.5])
    """
    rule = "it must be a density (0.35), several (0.35 0.5) or a sweep (0.1:1.0:0.1), each above 0 and at most 1"
    found: set[float] = set()
    for word in words:
        try:
            first, last, step = map(float, word.split(":") if ":" in word else (word, word, "1"))
            if not (step >= 1e-3 and 0 < first <= last <= 1):  # before the sweep is laid out
                raise ValueError
        except ValueError:
            raise ValueError(f"--density {word}: {rule}") from None
        sweep = {round(first + i * step, 6) for i in range(int((last - first) / step + 1e-6) + 1)}
        if not all(0 < density <= 1 for density in sweep):
            raise ValueError(f"--density {word}: {rule}")
        found |= sweep
    if not found:
        raise ValueError(f"--density is empty: {rule}")
    return sorted(found)
