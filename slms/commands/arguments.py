"""Command lines as people type them, in the form that jsonargparse reads."""

import inspect
import json
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any


def arranged(args: list[str], commands: Mapping[str, Callable[..., Any]]) -> list[str]:
    """Positional first argument, dashes in option names and lists of words, as `--name value` each.

    The first parameter of a command may be given without its name; `--task-id` is `--task_id`; words that follow an
    option whose parameter is a list are its items, and so are those of the same option given again.

    >>> def compare(runs: list[str], output_dir: str = "artifacts"): ...
    >>> arranged(["compare", "runs/a", "runs/b", "--output-dir=x"], {"compare": compare})
    ['compare', '--output_dir=x', '--runs=["runs/a", "runs/b"]']
    """
    if not args or args[0] not in commands:
        return args
    parameters = inspect.signature(commands[args[0]]).parameters
    lists = {name for name, parameter in parameters.items() if "list[" in str(parameter.annotation)}
    rest = args[1:]
    if rest and not rest[0].startswith("-"):
        rest = [f"--{next(iter(parameters))}", *rest]
    arranged_args, items = [args[0]], dict[str, list[str]]()
    while rest:
        name, equals, value = rest[0].partition("=")
        option = name.replace("-", "_").replace("__", "--", 1) if name.startswith("--") else name
        words = list(takewhile(lambda word: not word.startswith("-"), rest[1:]))
        if option[2:] in lists and (equals or words):
            given = [value] if equals else words
            if len(given) == 1 and given[0].startswith(("[", "null")):
                arranged_args.append(f"{option}={given[0]}")
            else:
                items.setdefault(option, []).extend(given)
            rest = rest[1:] if equals else rest[1 + len(words) :]
        else:
            arranged_args.append(option + equals + value)
            rest = rest[1:]
    return [*arranged_args, *(f"{option}={json.dumps(given)}" for option, given in items.items())]
