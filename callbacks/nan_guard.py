"""Stop before a loss or gradient that is not finite reaches the weights, and so the checkpoints."""

import math

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer


class NanGuard(Callback):
    """Raises ValueError (one line, exit code 2) when the training loss or the gradient norm is NaN or infinite.

    Checked before the optimizer's step, so the weights, and every checkpoint on disk, are those of the last good step.
    All ranks decide together. Under `16-mixed` gradients are left to the loss scaler, which skips such steps.
    """

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss."""
        self._check(trainer, "training loss", float(loss.detach()))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients."""
        if trainer.precision != "16-mixed":
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._check(trainer, "gradient norm", float(torch.nn.utils.get_total_norm(gradients)))

    def _check(self, trainer: Trainer, what: str, value: float) -> None:
        if trainer.strategy.reduce_boolean_decision(math.isfinite(value), all=True):
            return
        kept = getattr(trainer.checkpoint_callback, "last_model_path", "") or "none was written yet"
        raise ValueError(
            f"{what} is {value} at step {trainer.global_step}; it must be finite. Training stopped; the last good "
            f"checkpoint: {kept}"
        )
