"""The behaviour that both command lines share: a mistake is one line on stderr and exit code 2."""

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
    """Turn a `ValueError` or `OSError` into one line on stderr and exit code 2; SLMS_TRACEBACK=1 adds the traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("SLMS_TRACEBACK"):
            raise
        print(f"{program}: error: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def _one_line(message: object) -> str:
    """Keep only what is wrong, without the parser's list of everything else that it tried."""
    lines = [line.strip().removeprefix("- ") for line in str(message).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(_NOISE)]
    return " ".join(kept or lines) or type(message).__name__


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
