"""Stops a run before a loss or gradient that is not finite, or a loss that explodes, ruins weights and checkpoints."""

import json
import math
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from slms.callbacks.parts import leaves_files
from slms.files import write_atomic
from slms.lit.checkpoint import step_of
from slms.lit.trainer_options import run_directory

STOPPED_FILE = "stopped.json"
LOW = 0.1  # nats, of a language model; a loss that begins at 0, as of a dense student of itself, rises and is sound


class NanGuard(Callback):
    """Raises ValueError (one line, exit code 2) when the loss or the gradient norm is not finite, or the loss explodes.

    It checks before the optimizer's step, so the weights and every checkpoint on disk are those of the last good step.
    All ranks decide together, once a step. `stopped.json` in the run directory names the blocks of the step's batches
    on every rank. Under `16-mixed` it does not check gradients: the loss scaler skips such steps.

    Args:
        max_rise: the loss explodes when its running mean over about 20 batches exceeds this multiple of its lowest
            running mean, or of 0.1 if that is more; null allows any finite loss.
    """

    def __init__(self, max_rise: float | None = 10.0):
        super().__init__()
        if max_rise is not None and max_rise <= 1:
            raise ValueError(f"nan_guard.max_rise is {max_rise}; it must be above 1, or null")
        self.max_rise = max_rise
        self._mean, self._lowest = math.nan, math.inf
        self._blocks: list[int] = []  # of the optimizer step under way
        self._complaint: dict[str, str] | None = None  # the first thing wrong with it on this rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Remember which blocks the batch holds."""
        blocks = batch.get("block_ids") if isinstance(batch, dict) else None
        self._blocks += [] if blocks is None else blocks.tolist()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss."""
        value = float(loss.detach())
        if not math.isfinite(value):
            self._complain("training loss", value, "finite")
            return
        self._mean = value if math.isnan(self._mean) else 0.95 * self._mean + 0.05 * value
        self._lowest = min(self._lowest, self._mean)
        if self.max_rise is not None and self._mean > self.max_rise * max(self._lowest, LOW):
            rule = f"below {self.max_rise:g} times its lowest, {self._lowest:.4g}, or {LOW:g} (nan_guard.max_rise)"
            self._complain("training loss", value, rule)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients, and stop if any rank has a complaint."""
        if trainer.precision != "16-mixed":
            norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
            value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # sharded under FSDP2
            if not math.isfinite(value):
                self._complain("gradient norm", value, "finite")
        if not trainer.strategy.reduce_boolean_decision(self._complaint is None, all=True):
            self._stop(trainer)
        self._blocks = []

    def _complain(self, what: str, value: float, rule: str) -> None:
        self._complaint = self._complaint or {"what": what, "value": repr(value), "rule": rule}

    def _stop(self, trainer: Trainer) -> None:
        ranks = _gather({"rank": trainer.global_rank, "complaint": self._complaint, "block_ids": self._blocks})
        wrong = [rank for rank in ranks if rank["complaint"]]
        bad = next((rank for rank in wrong if rank["complaint"]["what"] == "training loss"), wrong[0])
        path = run_directory(trainer) / STOPPED_FILE
        named = ""
        if bad["block_ids"]:
            named = f" Blocks of the batch: {_short(bad['block_ids'])} (all in {path})."
            if leaves_files(trainer):
                stop = {"step": trainer.global_step, "epoch": trainer.current_epoch, "ranks": ranks}
                write_atomic(path, json.dumps(stop, indent=1) + "\n")
        kept = getattr(trainer.checkpoint_callback, "last_model_path", "") or "none was written yet"
        if Path(kept).exists() and step_of(Path(kept)) == trainer.global_step:
            kept += " (with the weights that gave this value: should it stop again, resume from an earlier one)"
        complaint = bad["complaint"]
        raise ValueError(
            f"{complaint['what']} is {complaint['value']} at step {trainer.global_step}; it must be "
            f"{complaint['rule']}. Training stopped.{named} The last good checkpoint: {kept}"
        )


def _gather(mine: dict) -> list[dict]:
    """Collect one dict from every rank."""
    if not torch.distributed.is_initialized():
        return [mine]
    said: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(said, mine)
    return said


def _short(blocks: list[int]) -> str:
    return ", ".join(map(str, blocks[:8])) + (", …" if len(blocks) > 8 else "")
