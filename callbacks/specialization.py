"""Logs what the pathways of every routed layer serve, each epoch and, if asked, every N steps."""

from itertools import islice

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from slms.callbacks.metrics_csv import log_at
from slms.callbacks.parts import language_model, text_data
from slms.callbacks.tensorboard import log_layout, log_pathways
from slms.lit.language_model import LanguageModel
from slms.measure.classes import labels_of
from slms.measure.pathways import PathwayTables, Tabulated
from slms.measure.rows import log_keys
from slms.models.routed import record_routes, routed_modules


class Specialization(Callback):
    """Logs every metric of every routed module, against tokens and against every label family.

    During validation it feeds the count tables with the module's `last_routes` and the batch's labels. At the end of
    the epoch it logs `val/purity/L3.mlp` and the like, and to TensorBoard utilization bars, pathway × class heatmaps
    and top tokens.

    Args:
        every_n_steps: also measure every this many optimizer steps, on the first `probe_batches` validation batches;
            logged as `probe/purity/L3.mlp` and the like. null measures at validation only.
        probe_batches: batches of such a measurement, on each device.
        heatmaps: label families to draw as heatmaps each epoch, if the data have them.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        probe_batches: int = 4,
        heatmaps: tuple[str, ...] = ("pos",),  # .35 s each on one core
    ):
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("probe_batches", probe_batches)):
            if value is not None and value < 1:
                raise ValueError(f"specialization.{name} is {value}; it must be at least 1")
        self.every_n_steps, self.probe_batches, self.heatmaps = every_n_steps, probe_batches, tuple(heatmaps)
        self._tables: PathwayTables | None = None
        self._probe: list[dict[str, Tensor]] = []
        self._probed_at = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit's model and text."""
        self._tables, self._probe, self._probed_at = None, [], 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Empty the tables; the first validation makes them, when the model is on its final device."""
        if trainer.sanity_checking:
            return
        if self._tables is None and trainer.state.fn == TrainerFn.FITTING:
            self._tables = self._new_tables(trainer, pl_module)
        if self._tables is not None:
            self._tables.reset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the batch's choices."""
        if self._tables is not None and not trainer.sanity_checking:
            self._tables.update(language_model(pl_module).last_routes, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scores; draw and tabulate on the first rank."""
        if self._tables is None or trainer.sanity_checking:
            return
        found = self._tables.compute(language_model(pl_module).tokenizer)
        self._tables.reset()
        pl_module.log_dict(log_keys(found.rows, "val"), sync_dist=trainer.world_size > 1)
        labels = labels_of(text_data(trainer).val_blocks)
        log_pathways(trainer, found, labels, self.heatmaps, trainer.global_step - 1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Measure on the probe batches if it is the step's turn."""
        step = trainer.global_step
        if self.every_n_steps is None or step % self.every_n_steps or step == self._probed_at:
            return
        self._probed_at = step  # with gradient accumulation several batches end at the same step
        if self._tables is None:
            self._tables = self._new_tables(trainer, pl_module)
        if self._tables is None:
            return
        values = log_keys(self._measure_probe(self._tables, trainer, language_model(pl_module)).rows, "probe")
        log_at(trainer, values, step - 1, trainer.current_epoch)  # steps from 0, as Lightning counts them

    @torch.no_grad()
    def _measure_probe(self, tables: PathwayTables, trainer: Trainer, module: LanguageModel) -> Tabulated:
        if not self._probe:
            self._probe = list(islice(text_data(trainer).val_dataloader(), self.probe_batches))
        was_training = module.net.training
        module.net.eval()
        tables.reset()
        for batch in self._probe:
            batch = {name: column.to(module.device) for name, column in batch.items()}
            with record_routes(module.net) as routes:
                module.net(batch["input_ids"], use_cache=False)
            tables.update(routes, batch)
        module.net.train(was_training)
        found = tables.compute(module.tokenizer)
        tables.reset()
        return found

    def _new_tables(self, trainer: Trainer, pl_module: LightningModule) -> PathwayTables | None:
        modules = routed_modules(language_model(pl_module).net)
        if not modules:
            return None
        log_layout(trainer)
        return PathwayTables(modules, text_data(trainer).val_blocks)
