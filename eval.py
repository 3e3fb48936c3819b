"""Measure a model or a run: `python eval.py COMMAND --help`."""

import os
import sys

# Idle OpenMP threads that spin at barriers slow a shared machine several times; set before torch starts them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from jsonargparse import auto_cli

from slms.cli import Parser, one_line_errors
from slms.commands import arranged, asked


def main(args: list[str] | None = None) -> None:
    """Run one command."""
    args = sys.argv[1:] if args is None else args
    with one_line_errors("eval.py"):
        commands = asked(args)
        if not args:
            raise ValueError(f"name a command: {', '.join(commands)}")
        auto_cli(
            commands,
            args=arranged(args, commands),
            as_positional=False,
            parser_class=Parser,
            prog="eval.py",
            description=__doc__,
        )


if __name__ == "__main__":
    main()
