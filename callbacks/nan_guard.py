"""Stop before a loss or gradient that is not finite, or a loss that explodes, ruins the weights and the checkpoints."""

import json
import math

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from callbacks.parts import run_directory
from slms.files import write_atomic

STOPPED_FILE = "stopped.json"


class NanGuard(Callback):
    """Raises ValueError (one line, exit code 2) when the loss or the gradient norm is not finite, or the loss explodes.

    Checked before the optimizer's step, so the weights, and every checkpoint on disk, are those of the last good step.
    All ranks decide together. `stopped.json` in the run directory names the blocks of the batch on every rank. Under
    `16-mixed` gradients are left to the loss scaler, which skips such steps.

    Args:
        max_rise: the loss explodes where its running mean, over about 20 batches, exceeds this many times its lowest;
            null allows any finite loss.
    """

    def __init__(self, max_rise: float | None = 10.0):
        super().__init__()
        if max_rise is not None and max_rise <= 1:
            raise ValueError(f"nan_guard.max_rise is {max_rise}; it must be above 1, or null")
        self.max_rise = max_rise
        self._mean, self._lowest = math.nan, math.inf
        self._blocks: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Remember the batch."""
        self._blocks = batch.get("block_ids") if isinstance(batch, dict) else None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss."""
        value = float(loss.detach())
        good, rule = math.isfinite(value), "finite"
        if good:
            self._mean = value if math.isnan(self._mean) else 0.95 * self._mean + 0.05 * value
            self._lowest = min(self._lowest, self._mean)
            if self.max_rise is not None and self._mean > self.max_rise * abs(self._lowest):
                good, rule = False, f"below {self.max_rise:g} times its lowest, {self._lowest:.4g} (nan_guard.max_rise)"
        self._check(trainer, "training loss", value, good, rule)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients."""
        if trainer.precision != "16-mixed":
            norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
            value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # sharded under FSDP2
            self._check(trainer, "gradient norm", value, math.isfinite(value), "finite")

    def _check(self, trainer: Trainer, what: str, value: float, good: bool, rule: str) -> None:
        if trainer.strategy.reduce_boolean_decision(good, all=True):
            return
        blocks = None if self._blocks is None else self._blocks.tolist()
        mine = {"rank": trainer.global_rank, "value": repr(value), "good": good, "block_ids": blocks}
        ranks = _gather(mine)
        bad = next(rank for rank in ranks if not rank["good"])
        kept = getattr(trainer.checkpoint_callback, "last_model_path", "") or "none was written yet"
        stop = {"step": trainer.global_step, "epoch": trainer.current_epoch, "what": what, "ranks": ranks}
        path = run_directory(trainer) / STOPPED_FILE
        if trainer.is_global_zero and any(rank["block_ids"] for rank in ranks):
            write_atomic(path, json.dumps(stop, indent=1) + "\n")
        named = f" Blocks of the batch: {_short(bad['block_ids'])} (all in {path})." if bad["block_ids"] else ""
        raise ValueError(
            f"{what} is {bad['value']} at step {trainer.global_step}; it must be {rule}. Training stopped.{named} "
            f"The last good checkpoint: {kept}"
        )


def _gather(mine: dict) -> list[dict]:
    """What every rank says."""
    if not torch.distributed.is_initialized():
        return [mine]
    said: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(said, mine)
    return said


def _short(blocks: list[int]) -> str:
    return ", ".join(map(str, blocks[:8])) + (", …" if len(blocks) > 8 else "")
