"""What the terminal shows while a run trains: a bar where there is a terminal, and a line for every validation."""

import sys
import time

import psutil
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from callbacks.parts import release_memory

SHOWN = {"train/loss/lm": "train", "val/loss": "val nats", "val/perplexity": "perplexity"}


class Progress(TQDMProgressBar):
    """Lightning's bar on a terminal, and everywhere a line after each validation: loss, speed, memory, time left.

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
        ids = batch.get("input_ids") if isinstance(batch, dict) else None
        self._tokens += 0 if ids is None else ids.numel() * trainer.world_size

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line, and end what the validation held in memory."""
        super().on_validation_end(trainer, pl_module)
        release_memory()
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics, total = trainer.callback_metrics, trainer.estimated_stepping_batches
        seconds = max(time.monotonic() - self._since, 1e-9)
        left = seconds / max(trainer.global_step - self._step, 1) * (total - trainer.global_step)
        shown = [f"{name} {float(metrics[key]):.4f}" for key, name in SHOWN.items() if key in metrics]
        shown += [
            f"{key.removeprefix('val/')} {float(value):.4f}"
            for key, value in metrics.items()
            if key.startswith("val/fvu/")
        ]
        if self._tokens:
            shown.append(f"{self._tokens / seconds:,.0f} tokens/s")
        shown.append(f"{psutil.Process().memory_info().rss / 1e6:,.0f} MB")
        if trainer.strategy.root_device.type == "cuda":
            shown.append(f"GPU {torch.cuda.max_memory_allocated(trainer.strategy.root_device) / 1e6:,.0f} MB")
        line = (
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step:,}/{total:,}  "
            f"{'  '.join(shown)}  {left / 60:.1f} min left"
        )
        if self.is_enabled:
            self.print(line)
        else:
            print(line, flush=True)
