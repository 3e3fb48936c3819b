"""What the command lines share: errors of one line and exit code 2."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator

from jsonargparse import ArgumentParser

from slms.option_names import offered

_NOISE = ("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value", "usage:")


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """A `ValueError` or `OSError` becomes one line on stderr and exit code 2; SLMS_TRACEBACK=1 shows where it rose."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("SLMS_TRACEBACK"):
            raise
        print(f"{program}: error: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def _one_line(message: object) -> str:
    """What is wrong, without the parser's account of everything else it tried."""
    lines = [line.strip().removeprefix("- ") for line in str(message).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(_NOISE)]
    return " ".join(kept or lines) or type(message).__name__


class OneLineErrors(ArgumentParser):
    """A parser whose mistakes are one line on stderr, without the usage page, and whose booleans need no value."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)  # a typo is not the option that it begins

    def parse_args(self, *args, **kwargs):
        """As jsonargparse does it; what overflows or nests without end is a mistake like any other."""
        try:
            return super().parse_args(*args, **kwargs)
        except OverflowError as error:
            self.error(f"a number is too large: {error}")
        except RecursionError:
            self.error("the configuration is nested too deeply")

    def add_argument(self, *args, **kwargs):
        """As jsonargparse does it; what may be true or false is a flag as well: `--option` alone is `--option true`."""
        action = super().add_argument(*args, **kwargs)
        if kwargs.get("type") is bool:
            action.nargs, action.const = "?", True
        return action

    def error(self, message, ex=None):
        """Print the part of `message` that says what is wrong; exit code 2."""
        line = _one_line(message)
        if unknown := re.match(r"unrecognized arguments: --([^\s=]+)", line, re.IGNORECASE):
            names = {word[2:] for word in self._option_string_actions if word.startswith("--")}
            line = f"--{unknown[1]}: there is no such option; {offered(unknown[1], names)}"
        print(f"{self.prog}: error: {line}", file=sys.stderr)
        raise SystemExit(2)


class Parser(OneLineErrors):
    """jsonargparse's parser with one-line errors."""
