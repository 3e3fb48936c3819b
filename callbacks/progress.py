"""What the terminal shows while a run trains: a bar where there is a terminal, and a line for every validation."""

import sys
import time

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's bar on a terminal, and everywhere a line with loss, speed and time left after each validation.

    Args:
        refresh_rate: batches between two updates of the bar.
    """

    def __init__(self, refresh_rate: int = 10):
        super().__init__(refresh_rate=refresh_rate)
        if not sys.stderr.isatty():
            self.disable()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._since, self._step, self._tokens = time.monotonic(), trainer.global_step, 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Count tokens."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._tokens += batch["input_ids"].numel() * trainer.world_size

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line."""
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics, total = trainer.callback_metrics, trainer.estimated_stepping_batches
        seconds = max(time.monotonic() - self._since, 1e-9)
        left = seconds / max(trainer.global_step - self._step, 1) * (total - trainer.global_step)
        line = (
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step:,}/{total:,}  "
            f"train {float(metrics['train/loss/lm']):.3f}  val {float(metrics['val/loss']):.4f} nats  "
            f"perplexity {float(metrics['val/perplexity']):.3f}  {self._tokens / seconds:,.0f} tokens/s  "
            f"{left / 60:.1f} min left"
        )
        if self.is_enabled:
            self.print(line)
        else:
            print(line, flush=True)
