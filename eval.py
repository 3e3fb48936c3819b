"""Measure a model or a run: `python eval.py COMMAND --help`."""

import os
import sys

# Idle OpenMP threads that spin at barriers slow a shared machine several times; set before torch starts them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from jsonargparse import auto_cli

from slms.cli import Parser, one_line_errors
from slms.commands import COMMANDS, arranged


def main(args: list[str] | None = None) -> None:
    """Run one command."""
    with one_line_errors("eval.py"):
        auto_cli(
            COMMANDS,
            args=arranged(sys.argv[1:] if args is None else args, COMMANDS),
            as_positional=False,
            parser_class=Parser,
            prog="eval.py",
            description=__doc__,
        )


if __name__ == "__main__":
    main()
