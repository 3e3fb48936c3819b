"""What the command lines share: errors of one line and exit code 2."""

import contextlib
import os
import sys
from collections.abc import Iterator

from jsonargparse import ArgumentParser

_NOISE = ("Does not validate", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value", "usage:")


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """A `ValueError` or `OSError` becomes one line on stderr and exit code 2; SLMS_TRACEBACK=1 shows where it rose."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("SLMS_TRACEBACK"):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(f"{program}: error: {lines[0] if lines else type(error).__name__}", file=sys.stderr)
        raise SystemExit(2) from None


class OneLineErrors:
    """A parser whose mistakes are one line on stderr, without the usage page."""

    def error(self, message, ex=None):
        """Print the part of `message` that says what is wrong; exit code 2."""
        lines = [line.strip(" -") for line in str(message).splitlines() if line.strip()]
        kept = [line for line in lines if not line.startswith(_NOISE)]
        print(f"{self.prog}: error: {' '.join(kept)}", file=sys.stderr)
        raise SystemExit(2)


class Parser(OneLineErrors, ArgumentParser):
    """jsonargparse's parser with one-line errors."""
