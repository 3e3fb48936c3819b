"""The programs `slms-train` and `slms-eval`, which `train.py` and `eval.py` of a checkout run too."""

import os
import sys

# Idle OpenMP threads that spin at barriers slow a shared machine severalfold; set this before torch starts them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from slms.cli import one_line_errors, program, refuse_empty


def train(args: list[str] | None = None) -> None:
    """Parse `args`, train, and write the run's results; `--list` names the configs."""
    from slms.lit.parser import configs_in_words, trains_coders

    given = sys.argv[1:] if args is None else args
    if "--list" in given:
        return print(configs_in_words())
    with one_line_errors(program("train.py")):
        refuse_empty(given)
        from slms.callbacks import CALLBACKS, CODER_CALLBACKS
        from slms.lit.cli import TrainCLI

        if trains_coders(given):
            from slms.lit.sparse_autoencoder import SparseAutoencoder
            from slms.models.activation_stream import ActivationData

            TrainCLI(CODER_CALLBACKS, args, SparseAutoencoder, ActivationData).fit()
        else:
            TrainCLI(CALLBACKS, args).fit()


def evaluate(args: list[str] | None = None) -> None:
    """Run one command."""
    from slms import commands

    with one_line_errors(program("eval.py")):
        refuse_empty(sys.argv[1:] if args is None else args)
        commands.main(args)
