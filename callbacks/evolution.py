"""Shows how the routers settle, by comparing their choices from the conversion on with those before and at the end."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from slms.callbacks.metrics_csv import log_at
from slms.callbacks.parts import language_model, leaves_files, text_data
from slms.callbacks.tensorboard import log_figure, writers
from slms.lit.trainer_options import run_directory
from slms.metrics.functional import router_saturation
from slms.models.place import place_name
from slms.models.routed import record_routes, routed_modules
from slms.report.evolution import EVOLUTION_FILE, evolution_figure
from slms.report.metrics_csv import METRICS_FILE, read_rows
from slms.report.palette import write_figure
from slms.routing import Routes

CONVERSION = -1  # the step of the snapshot before the first optimizer step


class Evolution(Callback):
    """Logs router saturation over training, and draws how every metric evolves.

    Each validation keeps, as bits, what each routed module chose for the first `probe_tokens` validation tokens.
    `val/stability/L3.mlp` is the share of these choices that the previous validation made too.
    `val/saturation/L3.mlp` is the share of the final choices that a validation had already made; it is written for
    every kept validation when training ends. The first snapshot is that of the model as converted, before the first
    optimizer step; it is logged at step 0, and the first validation's stability is against it.

    Args:
        probe_tokens: validation tokens whose choices are kept, on the first device.
        max_snapshots: validations to keep; when there are more, every second one is dropped, to bound memory.
    """

    def __init__(self, probe_tokens: int = 2048, max_snapshots: int = 32):
        super().__init__()
        for name, value, least in (("probe_tokens", probe_tokens, 1), ("max_snapshots", max_snapshots, 2)):
            if value < least:
                raise ValueError(f"evolution.{name} is {value}; it must be at least {least}")
        self.probe_tokens, self.max_snapshots = probe_tokens, max_snapshots
        self.snapshots: list[dict[str, Any]] = []  # {"step", "epoch", "choices": {place: packed bits [n, ⌈p/8⌉]}}
        self.n_pathways: dict[str, int] = {}
        self._filling: dict[str, list[Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        """The snapshots, so that a resumed run knows the choices of its past."""
        return {"snapshots": self.snapshots, "n_pathways": self.n_pathways}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the snapshots."""
        self.n_pathways = _by_place(state_dict["n_pathways"])
        self.snapshots = [
            snapshot | {"choices": _by_place(snapshot["choices"])} for snapshot in state_dict["snapshots"]
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the choices of the model as converted, unless the run is a resumed one."""
        module = language_model(pl_module)
        if trainer.global_step or self.snapshots or not routed_modules(module.net):
            return
        self._filling = {}
        was_training = module.net.training
        module.net.eval()
        with isolate_rng(), torch.no_grad():
            for batch in text_data(trainer).val_dataloader():
                with record_routes(module.net) as routes:  # on every rank: a sharded model is run by all
                    module.net(batch["input_ids"].to(module.device), use_cache=False)
                if self._fill(routes):
                    break
        module.net.train(was_training)
        self._close(trainer, CONVERSION)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a snapshot."""
        self._filling = {}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the choices of the first tokens."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._fill(language_model(pl_module).last_routes)

    def _fill(self, routes: dict[str, Routes]) -> bool:
        """Keep the choices of the tokens that are still missing; return whether none is."""
        for place, found in routes.items():
            kept = self._filling.setdefault(place, [])
            missing = self.probe_tokens - sum(map(len, kept))
            if missing > 0:
                kept.append(found.chosen[:missing].cpu())
        return all(sum(map(len, kept)) >= self.probe_tokens for kept in self._filling.values())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the snapshot and log how many choices the previous one shares."""
        if self._filling:
            self._close(trainer, trainer.global_step - 1)  # as Lightning counts the steps of what it logs

    def _close(self, trainer: Trainer, step: int) -> None:
        chosen = {place: torch.cat(parts) for place, parts in self._filling.items()}
        self._filling = {}
        if not trainer.is_global_zero:
            return
        self.n_pathways = {place: table.shape[1] for place, table in chosen.items()}
        packed = {place: torch.from_numpy(np.packbits(table.numpy(), axis=1)) for place, table in chosen.items()}
        # a resumed run may repeat the validation at its step
        self.snapshots = [snapshot for snapshot in self.snapshots if snapshot["step"] < step]
        if self.snapshots:
            values = {
                f"val/stability/{place}": _agreement(before, chosen[place])
                for place, before in self._choices(self.snapshots[-1]).items()
            }
            log_at(trainer, values, step, trainer.current_epoch)
        self.snapshots.append({"step": step, "epoch": trainer.current_epoch, "choices": packed})
        if len(self.snapshots) > self.max_snapshots:
            del self.snapshots[1:-1:2]  # the first and the last stay

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the saturation of every snapshot against the last, and the figure."""
        directory = run_directory(trainer)
        if not leaves_files(trainer):
            return
        if self.snapshots:
            final = self._choices(self.snapshots[-1])
            for snapshot in self.snapshots:
                values = {
                    f"val/saturation/{place}": _agreement(chosen, final[place])
                    for place, chosen in self._choices(snapshot).items()
                }
                log_at(trainer, values, max(snapshot["step"], 0), snapshot["epoch"])
        self._draw(trainer, directory / METRICS_FILE)

    def _choices(self, snapshot: dict[str, Any]) -> dict[str, Tensor]:
        """The snapshot's choices as bool [n, p] by place."""
        return {
            place: torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=self.n_pathways[place]).astype(bool))
            for place, bits in snapshot["choices"].items()
        }

    def _draw(self, trainer: Trainer, metrics: Path) -> None:
        """Draw `evolution.png` and `.svg` from the run's `metrics.csv`, if it exists."""
        if not metrics.is_file():
            return
        figure = evolution_figure(read_rows(metrics))
        write_figure(metrics.parent / EVOLUTION_FILE, figure)
        for writer in writers(trainer):
            log_figure(writer, "val/evolution", figure, trainer.global_step - 1)


def _by_place(found: dict) -> dict[str, Any]:
    """Rename the keys of old checkpoints, which know L3.mlp as 3, to places."""
    return {place_name(key) if isinstance(key, int) else key: value for key, value in found.items()}


def _agreement(earlier: Tensor, later: Tensor) -> float:
    """Saturation on the tokens that both snapshots have: with more processes, the first one may see fewer."""
    n = min(len(earlier), len(later))
    return float(router_saturation(earlier[:n], later[:n]))
