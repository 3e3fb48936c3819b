"""The optimizer's step that all training modules share: rates as configured, and gradients that are means."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR


class OptimizedModule(L.LightningModule):
    """A module with one optimizer, whose learning rate at each step is a share of its peak.

    A resumed run takes the optimizer's moments from the checkpoint, but rates, decays and schedule from the
    configuration. If an epoch's end cuts accumulation short, the step's gradient is the mean over the batches it holds;
    Lightning alone would divide by `accumulate_grad_batches` there too.
    """

    base_digest = ""  # digest of the weights that the run started from
    _configured: list[dict[str, Any]]
    _held = 0  # micro-batches of the optimizer step under way

    def scheduled(self, optimizer: torch.optim.Optimizer, share: Callable[[int], float]) -> dict[str, Any]:
        """The value for `configure_optimizers` to return: `optimizer` at its peak rates, times `share` of the step."""
        self._configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, share), "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record which base the run started from."""
        checkpoint["base_digest"] = self.base_digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another base, because the run is measured against its base and may be taught by it."""
        if checkpoint.get("base_digest", self.base_digest) != self.base_digest:
            raise ValueError("model.base has other weights than the run was started from; a resumed run must keep them")

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load as torch does, but report in one line that the state is of another model."""
        try:
            return super().load_state_dict(*args, **kwargs)
        except RuntimeError as error:
            wrong = " ".join(str(error).split("\n\t")[1:2])
            raise ValueError(
                f"--ckpt_path: the checkpoint is of another model than the configuration's: {wrong:.200}"
            ) from error

    def on_train_start(self) -> None:
        """Set the configured rates again, because a checkpoint restores its own run's rates with the moments."""
        (optimizer,), (config,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        schedule = config.scheduler
        assert isinstance(schedule, LambdaLR), schedule
        schedule.base_lrs = [group["lr"] for group in self._configured]
        shares = [share(schedule.last_epoch) for share in schedule.lr_lambdas]
        for group, configured, share in zip(optimizer.param_groups, self._configured, shares, strict=True):
            group.update(configured, initial_lr=configured["lr"], lr=configured["lr"] * share)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Free the last step's gradients, because Lightning keeps them while the forward pass needs the memory."""
        if self._held == 0:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()

    def on_before_backward(self, loss: Tensor) -> None:
        """Count the micro-batch."""
        self._held += 1

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the gradients into means over the micro-batches that the step holds."""
        wanted, self._held, held = self.trainer.accumulate_grad_batches, 0, self._held
        if held not in (0, wanted):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.mul_(wanted / held)
