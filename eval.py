"""Measure a model or a run: `python eval.py COMMAND --help`."""

import os

# Idle OpenMP threads that spin at barriers slow a shared machine severalfold; set this before torch starts them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from slms import commands
from slms.cli import one_line_errors


def main(args: list[str] | None = None) -> None:
    """Run one command."""
    with one_line_errors("eval.py"):
        commands.main(args)


if __name__ == "__main__":
    main()
