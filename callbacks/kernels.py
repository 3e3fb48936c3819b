"""Calibrates the routed MLPs' kernels before training."""

import logging

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from slms.callbacks.parts import text_data
from slms.kernels.dispatch import forget_choices
from slms.measure.kernels import calibrate_kernels

log = logging.getLogger(__name__)


class KernelCalibration(Callback):
    """Times every backend at this run's shapes, once per machine, and prints which will run.

    Args:
        calibrate: whether to time them; otherwise backends are chosen from this machine's table, or by estimate.
    """

    def __init__(self, calibrate: bool = False):
        super().__init__()
        self.calibrate = calibrate

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate now, because the model is routed by now."""
        if not self.calibrate:
            return
        data = text_data(trainer)
        tokens, dtype = data.batch_size * data.block_size, compute_dtype(str(trainer.precision))
        if trainer.is_global_zero:
            for training in (True, False):
                for line in calibrate_kernels(pl_module, (tokens,), dtype, training):
                    print(line, flush=True)
                    log.info("%s", line)
        trainer.strategy.barrier()  # other ranks read the table that rank 0 wrote
        forget_choices()


def compute_dtype(precision: str) -> torch.dtype:
    """The type of matrix products under a Trainer's precision.

    >>> compute_dtype("bf16-mixed"), compute_dtype("32-true")
    (torch.bfloat16, torch.float32)
    """
    if precision.startswith("bf16"):
        return torch.bfloat16
    if precision.startswith("16"):
        return torch.float16
    return torch.float64 if precision.startswith("64") else torch.float32
