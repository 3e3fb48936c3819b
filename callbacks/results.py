"""Writes the results of a finished run: `llm_routing_results.json`, the figure, `model/`, and the closing table."""

import dataclasses
import datetime
import os
import time
from pathlib import Path
from typing import Any, cast

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel

from slms.callbacks.parts import language_model, leaves_files, text_data
from slms.callbacks.tensorboard import log_hyperparameters
from slms.data.corpora import read_from
from slms.files import scratch
from slms.lit.language_model import LanguageModel
from slms.lit.strategies import whole
from slms.lit.trainer_options import run_directory
from slms.measure.controlled import ControlOptions, measure_controls
from slms.measure.pathways import measure_pathways
from slms.measure.results import assemble, base_of, data_of
from slms.measure.rows import MEAN
from slms.measure.schema import Results, Role, Run
from slms.models.base import random_twin
from slms.models.flops import flops_per_token
from slms.models.io import check_replaceable, save_model
from slms.report.card import run_card
from slms.report.closing_table import closing_table
from slms.report.figures import monosemanticity_figure
from slms.report.palette import write_figure
from slms.report.provenance import command_line, config_digest, hardware, versions
from slms.report.results import FIGURE_FILE, write_results


class ResultsWriter(Callback):
    """Measures the final model on the validation text, as `eval.py` would, and writes the results of the run.

    A run that was interrupted writes nothing.

    Args:
        save_model: also write `model/`, in Hugging Face format.
        random_model: also measure a randomly initialised model, the second null; this takes one more validation pass.
        control_seeds: seeds of each control (random routers, k-means) with the routers' loads; 0 leaves controls out.
    """

    def __init__(self, save_model: bool = True, random_model: bool = True, control_seeds: int = 5):
        super().__init__()
        if control_seeds < 0:
            raise ValueError(f"results.control_seeds is {control_seeds}; it must be at least 0")
        self.save_model, self.random_model, self.control_seeds = save_model, random_model, control_seeds
        self.results: Results | None = None
        self._tokens = 0
        self._seconds = 0.0
        self._since = 0.0
        self._started = ""
        self._directory = Path()

    def state_dict(self) -> dict[str, Any]:
        """The run's tokens, seconds and start, so that a resumed run counts all of it."""
        seconds = self._seconds + (time.monotonic() - self._since if self._since else 0.0)
        return {"tokens": self._tokens, "seconds": seconds, "started": self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the tokens, seconds and start."""
        self._tokens, self._seconds, self._started = (state_dict[key] for key in ("tokens", "seconds", "started"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()
        self._started = self._started or datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Count the tokens of all ranks."""
        self._tokens += batch["input_ids"].numel() * trainer.world_size

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write trial results from a few blocks of text, so that a run whose results cannot be written fails now."""
        directory, module = run_directory(trainer), language_model(pl_module)
        net, base = whole(module.net), _whole_base(module)
        if leaves_files(trainer):
            with isolate_rng(), scratch(directory) as place:
                try:
                    self._write(trainer, module, net, base, place, trial=True)
                    _check_way(place, directory)
                except (ValueError, OSError):
                    raise
                except Exception as error:  # of whichever library; at the end it would cost the whole run
                    raise ValueError(f"what the run's end writes fails: {type(error).__name__}: {error}") from error
        trainer.strategy.barrier("trial")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and write on the first rank while the others wait."""
        directory, module = run_directory(trainer), language_model(pl_module)
        self._directory = directory
        net, base = whole(module.net), _whole_base(module)
        if leaves_files(trainer):
            self.results = self._write(trainer, module, net, base, directory)
            if trainer.enable_autolog_hparams:
                log_hyperparameters(trainer, _config(directory, module), self.results, trainer.global_step - 1)
        trainer.strategy.barrier("results")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the closing table, below the finished progress bar."""
        if self.results is not None:
            print(f"\n{closing_table(self.results, brief=True)}\n\nwritten to {self._directory}", flush=True)

    def _write(
        self,
        trainer: Trainer,
        module: LanguageModel,
        net: PreTrainedModel,
        base: PreTrainedModel | None,
        directory: Path,
        trial: bool = False,
    ) -> Results:
        """Measure the model and write all its results into `directory`; a trial measures less."""
        results = self._measure(trainer, module, net, base, directory, trial)
        write_results(results, directory)
        if results.pathways:
            write_figure(directory / FIGURE_FILE, monosemanticity_figure(_first_place(results) if trial else results))
        if self.save_model:
            save_model(net, module.tokenizer, directory / "model", run_card(net, results), first_rows=trial)
        return results

    def _measure(
        self,
        trainer: Trainer,
        module: LanguageModel,
        net: PreTrainedModel,
        base: PreTrainedModel | None,
        directory: Path,
        trial: bool,
    ) -> Results:
        data = text_data(trainer)
        seconds = self.state_dict()["seconds"]  # of training; measuring is not part of it
        blocks = data.val_blocks.first(4) if trial else data.val_blocks
        measured, random = measure_pathways(net, module.tokenizer, blocks, data.batch_size, base=base), []
        options = ControlOptions(min(self.control_seeds, 2)) if trial else ControlOptions(self.control_seeds)
        controlled = measure_controls(net, blocks, data.batch_size, options=options)
        if self.random_model and measured.pathways:  # a trial costs one model less, which is made of the same parts
            twin = measured if trial else measure_pathways(random_twin(net), module.tokenizer, blocks, data.batch_size)
            random = twin.rows
        return assemble(
            self._run(trainer, module, directory, seconds),
            base_of(module.base),
            data_of(
                data.corpus_name,
                data.val_blocks,
                int(data.train_blocks.input_ids.size),
                read_from(data.corpus_name, "validation", data.corpus.validation),
            ),
            measured,
            dense=measured.loss if trial else module.base_loss,
            controlled=controlled,
            random_weights=random,
            flops=flops_per_token(net, data.block_size, measured.densities, measured.through),
            routing=None if module.routing is None else module.routing.to_dict(),
            control_run=module.made_control,
        )

    def _run(self, trainer: Trainer, module: LanguageModel, directory: Path, seconds: float) -> Run:
        seed = os.environ.get("PL_GLOBAL_SEED")
        machine = {"devices": str(trainer.world_size), "precision": str(trainer.precision)}
        return Run(
            name=directory.parent.name,
            role=cast(Role, module.role),
            command=command_line(),
            config_digest=config_digest(directory / "config.yaml"),
            seed=None if seed is None else int(seed),
            started=self._started,
            seconds=round(seconds, 1),
            steps=trainer.global_step,
            tokens_trained=self._tokens,
            versions=versions(),
            hardware=hardware(module.device) | machine,
        )


def _whole_base(module: LanguageModel) -> PreTrainedModel | None:
    """The frozen base that taught the run, whole and on the model's device."""
    return whole(module.teacher.on(module.device)) if module.teacher else None


def _check_way(made: Path, directory: Path) -> None:
    """Raise ValueError if what is in `directory` already keeps a file or directory like those in `made` out."""
    for path in made.iterdir():
        there = directory / path.name
        if path.is_dir():
            check_replaceable(there)
        elif there.is_dir():
            raise ValueError(f"{there} is a directory; the run writes a file of that name")


def _first_place(results: Results) -> Results:
    """The results of the first place alone, whose figure takes a tenth of the time."""
    first = results.places[0]
    rows = [row for row in results.rows if row.place in (first, MEAN)]
    return dataclasses.replace(results, rows=rows, pathways={first: results.pathways[first]})


def _config(directory: Path, module: LanguageModel) -> dict[str, Any]:
    """The resolved configuration of the run; the module's hyper-parameters where no file was saved."""
    path = directory / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else dict(module.hparams)
