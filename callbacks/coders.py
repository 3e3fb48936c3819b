"""Writes the coders of a run: a SAELens directory each, after every validation and when the run is interrupted."""

import logging
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

logger = logging.getLogger(__name__)


class CoderWriter(Callback):
    """Writes `saes/NAME/` into the run directory; on an exception or a signal also `checkpoints/last.ckpt`.

    The module has `export(directory)`, which returns one line for each coder that the format cannot hold.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the coders as they are."""
        self._write(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what there is: SIGTERM and Ctrl-C arrive here after the batch they interrupt."""
        if trainer.global_step > 0 and isinstance(exception, KeyboardInterrupt | SIGTERMException):
            trainer.save_checkpoint(Path(trainer.log_dir) / "checkpoints" / "last.ckpt")
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory = trainer.log_dir  # asked for on every rank: it is broadcast
        if trainer.is_global_zero and directory is not None:
            for line in pl_module.export(Path(directory) / "saes"):
                logger.warning("not exported: %s", line)
