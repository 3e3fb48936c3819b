"""The commands of eval.py, one function a command: its signature and docstring are the interface."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from slms.commands.arguments import arranged

NAMES = (
    "layers",
    "perplexity",
    "pathways",
    "compare",
    "capture",
    "sparsity",
    "specialization",
    "probes",
    "ablation",
    "suite",
    "sae",
    "features",
    "dynamick",
    "harness",
    "doctor",
)
"""In the order of `eval.py --help`; each is a function in the module of its name."""


class _Commands(Mapping[str, Callable[..., Any]]):
    """Name → function. A command is imported when it is asked for: what it needs takes seconds to import."""

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in NAMES:
            raise KeyError(name)
        return getattr(importlib.import_module(f"slms.commands.{name}"), name)

    def __contains__(self, name: object) -> bool:
        return name in NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


COMMANDS = _Commands()


def asked(args: list[str]) -> dict[str, Callable[..., Any]]:
    """The command that a command line starts with, or all of them where it names none.

    >>> list(asked(["compare", "runs/a"])), len(asked(["--help"])) == len(NAMES)
    (['compare'], True)
    """
    return {args[0]: COMMANDS[args[0]]} if args and args[0] in COMMANDS else dict(COMMANDS)


__all__ = ["COMMANDS", "arranged", "asked"]
