"""The results of a finished run: `llm_routing_results.json`, the figure, `model/`, and the closing table."""

import datetime
import os
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.tensorboard import log_hyperparameters
from slms.data.text import EMBEDDED
from slms.models.flops import flops_per_token
from slms.models.io import save_model
from slms.models.source import resolve
from slms.report.assemble import assemble
from slms.report.facts import command_line, config_digest, hardware, versions
from slms.report.figures import monosemanticity_figure
from slms.report.measure import measure, random_model
from slms.report.palette import write_figure
from slms.report.results import FIGURE_FILE, write_results
from slms.report.schema import Base, Data, Results, Run
from slms.report.tables import closing_table


class ResultsWriter(Callback):
    """Measures the final model on the validation text, as `eval.py` would, and writes what the run leaves behind.

    A run that was interrupted writes nothing. The module has `net`, `tokenizer`, `base` (its `BaseConfig`), `routing`,
    `role` and `base_loss`; the data module `val_blocks`, `train_blocks`, `corpus_name`, `batch_size`, `block_size`.

    Args:
        save_model: also write `model/`, in Hugging Face format.
        random_model: also measure a randomly initialised model, the second null; costs one more validation pass.
    """

    def __init__(self, save_model: bool = True, random_model: bool = True):
        super().__init__()
        self.save_model, self.random_model = save_model, random_model
        self.results: Results | None = None
        self._tokens = 0
        self._seconds = 0.0
        self._since = 0.0
        self._started = ""

    def state_dict(self) -> dict[str, Any]:
        """Tokens, seconds and start of the run, so that a resumed run counts all of it."""
        seconds = self._seconds + (time.monotonic() - self._since if self._since else 0.0)
        return {"tokens": self._tokens, "seconds": seconds, "started": self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._tokens, self._seconds, self._started = (state_dict[key] for key in ("tokens", "seconds", "started"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()
        self._started = self._started or datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Count the tokens of all ranks."""
        self._tokens += batch["input_ids"].numel() * trainer.world_size

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and write on the first rank, while the others wait."""
        directory = Path(trainer.log_dir)  # asked for on every rank: it is broadcast
        if trainer.is_global_zero and not trainer.fast_dev_run:
            self.results = self._measure(trainer, pl_module, directory)
            write_results(self.results, directory)
            if self.results.layers:
                write_figure(directory / FIGURE_FILE, monosemanticity_figure(self.results))
            if self.save_model:
                save_model(pl_module.net, pl_module.tokenizer, directory / "model")
            log_hyperparameters(trainer, _config(directory, pl_module), self.results, trainer.global_step - 1)
        trainer.strategy.barrier("results")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the closing table, below the finished progress bar."""
        if self.results is not None:
            print(f"\n{closing_table(self.results)}\n\nwritten to {trainer.log_dir}", flush=True)

    def _measure(self, trainer: Trainer, pl_module: LightningModule, directory: Path) -> Results:
        data, net = trainer.datamodule, pl_module.net
        seconds = self.state_dict()["seconds"]  # of training; measuring is not part of it
        measured = measure(net, pl_module.tokenizer, data.val_blocks, data.batch_size)
        random = None
        if self.random_model and measured.layers:
            null = random_model(net)
            random = measure(null, pl_module.tokenizer, data.val_blocks, data.batch_size)
        density = {layer.layer: layer.density for layer in measured.layers}
        return assemble(
            self._run(trainer, pl_module, directory, seconds),
            _base(pl_module),
            _data(data),
            measured,
            dense=pl_module.base_loss,
            random=random,
            flops=flops_per_token(net, data.block_size, density),
            routing=None if pl_module.routing is None else pl_module.routing.to_dict(),
        )

    def _run(self, trainer: Trainer, pl_module: LightningModule, directory: Path, seconds: float) -> Run:
        seed = os.environ.get("PL_GLOBAL_SEED")
        return Run(
            name=directory.parent.name,
            role=pl_module.role,
            command=command_line(),
            config_digest=config_digest(directory / "config.yaml"),
            seed=None if seed is None else int(seed),
            started=self._started,
            seconds=round(seconds, 1),
            steps=trainer.global_step,
            tokens_trained=self._tokens,
            versions=versions(),
            hardware=hardware(pl_module.device) | {"devices": str(trainer.world_size), "precision": trainer.precision},
        )


def _base(pl_module: LightningModule) -> Base:
    """What the base's configuration came to."""
    config = pl_module.base
    found = resolve(config)
    return Base(name=found.name, source=found.kind, asked=config.hub or config.name or found.name)


def _data(data) -> Data:
    """The text that was trained and measured on."""
    name = data.corpus_name
    source = "embedded" if name == EMBEDDED else "local" if Path(name).exists() else "hub"
    blocks = data.val_blocks
    return Data(
        name=name,
        source=source,
        train_tokens=int(data.train_blocks.input_ids.size),
        validation_tokens=int(blocks.input_ids.size),
        validation_documents=int(blocks.doc_ids.max()) + 1,
    )


def _config(directory: Path, pl_module: LightningModule) -> dict[str, Any]:
    """The resolved configuration of the run; the module's hyper-parameters where no file was saved."""
    path = directory / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else dict(pl_module.hparams)
