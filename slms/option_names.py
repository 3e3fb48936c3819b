"""Lists a parser's options by their full names and suggests one for a mistyped name.

Only this file uses parts of jsonargparse that are not documented: an action's `_typehint`, and ActionLink.
"""

import dataclasses
from argparse import Action
from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser

NEAREST = 3  # names that an error suggests at most


class OptionNames:
    """Every option of a parser as a dotted path, including those inside lists and sections that may be null.

    Args:
        parser: the parser.
        open_sections: sections whose contents only the parser checks: the arguments of classes that a user names.
    """

    def __init__(self, parser: ArgumentParser, open_sections: Iterable[str] = ()):
        self.open = tuple(f"{section}." for section in open_sections)
        self.names: set[str] = set()
        for action in _options(parser):
            self._add(action.dest, getattr(action, "_typehint", None))

    def _add(self, name: str, kind: Any) -> None:
        self.names.add(name)
        self.names.update(".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1))
        for inner in [kind, *get_args(kind)]:
            if dataclasses.is_dataclass(inner) and isinstance(inner, type):
                for field, hint in get_type_hints(inner).items():
                    self._add(f"{name}.{field}", hint)
            elif inner is not kind and inner is not NoneType and get_args(inner):
                self._add(name, inner)

    def check_line(self, args: list[str]) -> None:
        """Refuse an unknown option of a command line.

        Raises:
            ValueError: an option is unknown; the message names it in full, with its nearest neighbours.
        """
        for i, word in enumerate(args):
            name, _, value = word.removeprefix("--").partition("=")
            if not word.startswith("--") or name in ("config", "help", "print_config") or name.endswith(".help"):
                continue
            following = args[i + 1] if i + 1 < len(args) else ""
            value = value or ("" if following.startswith("--") else following)
            name = name.removesuffix("+")
            self.check(name, _mapping(value))
            if f"{name}.name" in self.names and isinstance(_parsed(value), str) and not Path(value).is_file():
                raise ValueError(f"--{name} {value}: this is a section of options; a name is --{name}.name {value}")

    def check(self, name: str, value: Any) -> None:
        """Refuse an unknown option, or an unknown one inside its value, by the ValueError of `check_line`."""
        if name and name not in self.names:
            if name.startswith(self.open):
                return
            raise ValueError(f"--{name}: there is no such option; {offered(name, self.names)}")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and f"{name}." not in self.open:
                for key, inner in item.items():
                    self.check(f"{name}.{key}" if name else str(key), inner)


def offered(name: str, names: Iterable[str]) -> str:
    """Name the nearest of `names`: similar as a whole, or with a similar last part in another section.

    >>> offered("model.optimizer.lrr", ["model.optimizer.lr", "model.routing.k", "data.seed"])
    'the nearest is --model.optimizer.lr'
    >>> offered("lr", ["model.optimizer.lr", "trainer.max_time"])
    'the nearest is --model.optimizer.lr'
    """
    last = name.rsplit(".", 1)[-1]

    def likeness(other: str) -> float:
        whole = SequenceMatcher(None, name, other).ratio()
        return max(whole, 0.95 * SequenceMatcher(None, last, other.rsplit(".", 1)[-1]).ratio())

    others = [other for other in names if not name.startswith(f"{other}.") and likeness(other) > 0.6]
    near = sorted(others, key=lambda other: (-likeness(other), other))
    if not near:
        return "--help lists all"
    return f"the nearest {'is' if len(near) == 1 else 'are'} {', '.join(f'--{other}' for other in near[:NEAREST])}"


def _options(parser: ArgumentParser) -> list[Action]:
    """Return the actions that a user may set, which excludes help pages and the targets of links."""
    links = ("ActionLink",)
    return [a for a in parser._actions if not a.dest.endswith(".help") and type(a).__name__ not in links]


def _mapping(text: str) -> Any:
    """Return what a value holds if it is written as a mapping or a list."""
    return _parsed(text) if text[:1] in ("{", "[") else None


def _parsed(text: str) -> Any:
    """Parse a command line's value as YAML; None if it is not YAML, since the parser then says what is wrong."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
