"""Prints the progress of a run: a bar on a terminal, lines in a file, and a line for every validation."""

import sys
import time

import psutil
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from slms.callbacks.parts import release_memory
from slms.progress import Pace, duration

SHOWN = {"train/loss/lm": "train", "val/loss": "val nats", "val/perplexity": "perplexity"}


class Progress(TQDMProgressBar):
    """Shows Lightning's bar on a terminal, or a line now and then elsewhere, and always a line after each validation.

    A line holds the loss, the speed, the memory in use and the time left, from the second step on.

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
        self._since, self._step, self._tokens, self._warm = time.monotonic(), trainer.global_step, 0, False
        self._pace = Pace()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Count tokens, and print a line if the last one was long ago."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self._warm:  # the first step compiles and fills caches, so it tells nothing about the others
            self._warm, self._since, self._step = True, time.monotonic(), trainer.global_step
            return
        ids = batch.get("input_ids") if isinstance(batch, dict) else None
        self._tokens += 0 if ids is None else ids.numel() * trainer.world_size
        if self._speaks(trainer):
            print(self._line(trainer, ("train/",)), flush=True)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Print how far a long validation has come."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if not trainer.sanity_checking and self._speaks(trainer):
            print(f"validating: batch {batch_idx + 1:,}/{trainer.num_val_batches[dataloader_idx]:,}", flush=True)

    def _speaks(self, trainer: Trainer) -> bool:
        return not self.is_enabled and trainer.is_global_zero and self._pace.due()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line, and release the memory that the validation held."""
        super().on_validation_end(trainer, pl_module)
        release_memory()
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        line = self._line(trainer, ("train/", "val/"))
        if self.is_enabled:
            self.print(line)
        else:
            print(line, flush=True)

    def _line(self, trainer: Trainer, stages: tuple[str, ...]) -> str:
        metrics, total = trainer.callback_metrics, trainer.estimated_stepping_batches
        seconds = max(time.monotonic() - self._since, 1e-9)
        left = seconds / max(trainer.global_step - self._step, 1) * (total - trainer.global_step)
        known = {key: float(value) for key, value in metrics.items() if key.startswith(stages)}
        shown = [f"{name} {known[key]:.4f}" for key, name in SHOWN.items() if key in known]
        fvu = f"{stages[-1]}fvu/"
        shown += [f"{key.partition('/')[2]} {value:.4f}" for key, value in known.items() if key.startswith(fvu)]
        if self._tokens:
            shown.append(f"{self._tokens / seconds:,.0f} tokens/s")
        shown.append(f"{psutil.Process().memory_info().rss / 1e6:,.0f} MB")
        if trainer.strategy.root_device.type == "cuda":
            shown.append(f"GPU {torch.cuda.max_memory_allocated(trainer.strategy.root_device) / 1e6:,.0f} MB")
        return (
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step:,}/{total:,}  "
            f"{'  '.join(shown)}  {duration(left)} left"
        )
