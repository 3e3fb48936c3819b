"""Train one YAML into one run directory: `python train.py --config routed_tinystories.yaml`; `--list` names them."""

import os
import sys

# Idle OpenMP threads that spin at barriers slow a shared machine severalfold; set this before torch starts them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from callbacks import CALLBACKS, CODER_CALLBACKS
from slms.cli import one_line_errors
from slms.lit.cli import TrainCLI
from slms.lit.parser import configs_in_words, trains_coders
from slms.lit.sparse_autoencoder import SparseAutoencoder
from slms.models.activation_stream import ActivationData


def main(args: list[str] | None = None) -> None:
    """Parse `args`, train, and write the run's results."""
    given = sys.argv[1:] if args is None else args
    if "--list" in given:
        return print(configs_in_words())
    with one_line_errors("train.py"):
        if trains_coders(given):
            TrainCLI(CODER_CALLBACKS, args, SparseAutoencoder, ActivationData).fit()
        else:
            TrainCLI(CALLBACKS, args).fit()


if __name__ == "__main__":
    main()
