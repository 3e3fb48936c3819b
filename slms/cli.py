"""The behaviour that both command lines share: a mistake is one line on stderr and exit code 2."""

import contextlib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from slms.option_names import offered

_NOISE = ("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value", "usage:")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def program(script: str) -> str:
    """The name by which the user called `script`: `slms-train` or `slms-eval` where installed, else its own."""
    called = Path(sys.argv[0]).stem
    return called if called.startswith("slms-") else script


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turn a `ValueError` or `OSError` into one line on stderr and exit code 2; SLMS_TRACEBACK=1 adds the traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("SLMS_TRACEBACK"):
            raise
        print(f"{program}: error: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def refuse_empty(words: Sequence[str]) -> None:
    """Raise ValueError for a word of a command line without content, such as a script's variable that was not set."""
    for word in words:
        if word == "" or re.fullmatch(r"--[^=]+=", word):
            raise ValueError(f"{word.removesuffix('=') or 'an argument'} is empty; give it a value or leave it out")


def _one_line(message: object) -> str:
    """Keep only what is wrong, without the parser's list of everything else that it tried."""
    lines = [line.strip().removeprefix("- ") for line in str(message).splitlines() if line.strip()]
    kept = " ".join(_of_one_type([line for line in lines if not line.startswith(_NOISE)]) or lines)
    given = next((line.partition(": ")[2] for line in lines if line.startswith("Given value:")), "")
    if wrong := re.fullmatch(r"Parser key \"([\w.]+)\": Expected a <class '(\w+)'>(?:\. Got value: (.*))?", kept):
        return f"--{wrong[1]} {wrong[3] or given}: it must be {_KINDS.get(wrong[2], wrong[2])}"
    if wrong := re.fullmatch(
        r"Parser key \"([\w.]+)\": Expected a typing\.Literal\[(.*?)\](?:\. Got value: (.*))?", kept
    ):
        return f"--{wrong[1]} {wrong[3] or given}: it must be one of {wrong[2]}".replace("'", "")
    if wrong := re.match(r"Parser key \"([\w.]+)\": Unable to load config '(.*?)'", kept):
        return f"--{wrong[1]} {wrong[2]}: a section of options takes a mapping or a YAML file"
    if wrong := re.match(r"Parser key \"([\w.]+)\":.*Expected a dot import path string: (\S+)", " ".join(lines)):
        return f"--{wrong[1]} {wrong[2]}: there is no such class; one of your own is package.module.Class"
    if wrong := re.search(r"class_path '(?:\w+\.)*(\w+)':.*?(?:Requirement|Module not found:?) '([\w.-]+)(.*?)'", kept):
        return f"{wrong[1]} needs the package {wrong[2]}: pip install '{wrong[2]}{wrong[3]}'"
    return kept or type(message).__name__


def _of_one_type(lines: list[str]) -> list[str]:
    """Leave out the other types that a value might have had, if one of them says what is wrong with it."""
    told = [line for line in lines if not line.startswith("Expected a ")]
    return told if any(not line.startswith("Parser key") or "Expected a " in line for line in told) else lines


def hanging(items: Sequence[tuple[str, str]], width: int, indent: str = "") -> list[str]:
    """Lines of a list of names padded to `width` and what each is, wrapped beside the name to fit the terminal."""
    columns = max(shutil.get_terminal_size().columns, width + 40)
    after = " " * (len(indent) + width + 2)
    lines: list[str] = []
    for name, text in items:
        lines += textwrap.wrap(f"{indent}{name:{width}}  {text}", columns, subsequent_indent=after)
    return lines


class OneLineErrors(ArgumentParser):
    """A parser that reports a mistake in one line on stderr, without the usage page; its booleans need no value."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)  # a prefix of an option may be a typo of another

    def parse_args(self, *args, **kwargs):
        """Parse as jsonargparse does, but also report an overflow or endless nesting as a mistake."""
        try:
            return super().parse_args(*args, **kwargs)
        except OverflowError as error:
            self.error(f"a number is too large: {error}")
        except RecursionError:
            self.error("the configuration is nested too deeply")

    def add_argument(self, *args, **kwargs):
        """Add as jsonargparse does, but make each boolean a flag as well: `--option` alone means `--option true`."""
        action = super().add_argument(*args, **kwargs)
        if kwargs.get("type") is bool:
            action.nargs, action.const = "?", True
        return action

    def error(self, message, ex=None):
        """Print the part of `message` that says what is wrong, then exit with code 2."""
        line = _one_line(message)
        if unknown := re.match(r"unrecognized arguments: --([^\s=]+)", line, re.IGNORECASE):
            names = {word[2:] for word in self._option_string_actions if word.startswith("--")}
            line = f"--{unknown[1]}: there is no such option; {offered(unknown[1], names)}"
        print(f"{self.prog}: error: {line}", file=sys.stderr)
        raise SystemExit(2)


class Parser(OneLineErrors):
    """jsonargparse's parser with one-line errors."""
