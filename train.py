"""Train one YAML into one run directory: `python train.py --config routed_tinystories.yaml`."""

import os

# Idle OpenMP threads that spin at barriers slow a shared machine several times; set before torch starts them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from callbacks import CALLBACKS
from slms.cli import one_line_errors
from slms.lit.cli import TrainCLI


def main(args: list[str] | None = None) -> None:
    """Parse `args`, train, and write the run's results."""
    with one_line_errors("train.py"):
        TrainCLI(CALLBACKS, args).fit()


if __name__ == "__main__":
    main()
