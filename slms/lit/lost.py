"""Says why the processes of a run lost each other, and what to do."""

import os
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from slms.lit.checkpoint import checkpoints_of
from slms.lit.lightning_internals import StepCheckpoint


def why_lost(error: Exception, trainer: Trainer) -> str | None:
    """One line for an error that came of another process, or of the port where they meet; None for any other error.

    Processes name their run by their own clocks, so the directory is the one that the first told all to write to.
    """
    if trainer.world_size == 1 or not _is_lost_connection(error):
        return None
    said, rank = str(error).splitlines()[0], f"rank {trainer.global_rank}"
    if "EADDRINUSE" in said:
        port = os.environ.get("MASTER_PORT")
        return f"{rank}: port {port} is taken; set another MASTER_PORT, or --master_port of torchrun"
    own = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, StepCheckpoint)]
    runs = [Path(callback.dirpath).parent for callback in own if callback.dirpath]
    saved = next((run for run in runs if checkpoints_of(run)), None)
    then = f"resume with --ckpt_path={saved}" if saved else "no checkpoint exists yet; run the same command again"
    return f"{rank}: another process of this run stopped ({said}); {then}"


def _is_lost_connection(error: Exception) -> bool:
    """Whether a collective failed because another process is gone, which Gloo reports as a plain RuntimeError."""
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
