"""Lightning's fit loop, for which a run that is resumed at its end is not over before it has begun."""

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop


class FinishingLoop(_FitLoop):
    """Calls `on_train_start` and `on_train_end` although no step is left.

    A run may be stopped between its last checkpoint and its results; resumed, it writes them.
    """

    @property
    def skip(self) -> bool:
        """As Lightning has it, where training begins anew or has no batches."""
        return super().skip and not (self.trainer.ckpt_path and self.max_batches)

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Take the place of the trainer's own loop, before it has run."""
        theirs = trainer.fit_loop
        trainer.fit_loop = cls(trainer, theirs.min_epochs, theirs.max_epochs)
        trainer.fit_loop.epoch_loop = theirs.epoch_loop
