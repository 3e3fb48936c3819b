"""The training command line: one YAML → one run directory.

Everything is a LightningCLI option: `--model.routing.k=2`, `--data.batch_size=8`, `--trainer.max_epochs=1`. A value
that you give on the command line overrides the YAML. A mistake gives one line on stderr and exit code 2.
"""

import contextlib
import logging
import warnings
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from slms.cli import program
from slms.data.module import TextData
from slms.files import write_atomic
from slms.lit import strategies, trainer_options
from slms.lit.checkpoint import (
    CONFIG_KEY,
    WholeCheckpointIO,
    check_checkpoint,
    config_in,
    find_checkpoint,
    newest_checkpoint,
    step_of,
)
from slms.lit.distill import DistillConfig
from slms.lit.language_model import LanguageModel
from slms.lit.lightning_internals import FinishingLoop, StepCheckpoint, move_root
from slms.lit.logger import TensorBoard
from slms.lit.lost import why_lost
from slms.lit.optim import trained_by_default
from slms.lit.parser import FindConfig, TrainParser, known_configs, read_yaml
from slms.lit.resume import check_resumed
from slms.lit.run_directory import CONFIG_FILE, RunDirectory, run_of
from slms.lit.sources import settle
from slms.lit.trainer_options import run_directory
from slms.routing import RoutingConfig


class _RunFiles(SaveConfigCallback):
    """Keeps the run directory once training starts, and saves the last checkpoint as it ends, before other callbacks.

    So a refused run leaves nothing behind, and a result that cannot be written loses nothing.
    """

    run: RunDirectory | None = None  # of the first rank

    def setup(self, trainer, pl_module, stage):
        """Do nothing yet, because the data and the model have not been checked."""

    def on_train_start(self, trainer, pl_module):
        """Write `config.yaml`, now that all is checked and restored, and give loggers the hyper-parameters."""
        directory = run_directory(trainer)
        if not trainer.is_global_zero:
            return
        assert self.run is not None
        self.run.start()
        config, file = self.parser.dump(self.config, skip_none=False), directory / CONFIG_FILE
        if trainer.fit_loop.done:
            print(f"no step is left after step {trainer.global_step}: the results are written again", flush=True)
        if not (trainer.fit_loop.done and file.exists()):  # it says what was used
            write_atomic(file, config)
        if trainer.enable_autolog_hparams:
            for logger in trainer.loggers:
                if not isinstance(logger, TensorBoardLogger):  # whose row is written with the final numbers
                    logger.log_hyperparams(yaml.safe_load(config))

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        """Put the configuration into the checkpoint, which may be moved away from its run."""
        checkpoint[CONFIG_KEY] = self.parser.dump(self.config, skip_none=False)

    def on_train_end(self, trainer, pl_module):
        """Save the last checkpoint before the results are measured."""
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, StepCheckpoint):
                checkpoint.save_end(trainer)


def quiet() -> None:
    """Silence advertisements and notices about Lightning's own internals; keep the messages that concern the user."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for notice in (
        ".*LeafSpec.*",
        ".*smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists.*",
        ".*`broadcast_buffers` is deprecated.*",
        ".*self.log\\('val/.*sync_dist.*",  # what is logged has been summed over ranks
    ):
        warnings.filterwarnings("ignore", message=notice)


class TrainCLI(LightningCLI):
    """Parses options, settles the sources of base and corpus, names the run directory, builds trainer, model and data.

    Args:
        callbacks: config key → callback class; each gets its options under that key.
        args: the command line; by default the process's own.
        module: the class that is trained.
        data: the class of the data it is trained on.
    """

    def __init__(
        self,
        callbacks: dict[str, type[Callback]],
        args: list[str] | None = None,
        module: type[LightningModule] = LanguageModel,
        data: type[TextData] = TextData,
    ):
        self._callbacks = callbacks
        self.checkpoint: Path | None = None
        quiet()
        strategies.register()
        super().__init__(
            model_class=module,
            datamodule_class=data,
            run=False,
            args=args,
            parser_class=TrainParser,
            parser_kwargs={"prog": program("train.py"), "description": __doc__},
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=_RunFiles,
            trainer_defaults={
                "gradient_clip_val": 1.0,
                "use_distributed_sampler": False,  # TextData deals blocks to ranks itself
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
        )

    def init_parser(self, **kwargs):
        """Make the parser, whose `--config` finds a config by its name."""
        parser = self.parser_class(**kwargs)
        parser.add_argument("-c", "--config", action=FindConfig, help="a YAML file, or the name of one (see --list)")
        return parser

    def add_core_arguments_to_parser(self, parser, *args, **kwargs):
        """Add the options of trainer, model and data, except those that are always refused."""
        super().add_core_arguments_to_parser(parser, *args, **kwargs)
        for action in parser._actions:
            if action.dest.removeprefix("trainer.") in trainer_options.REFUSED:
                action.help = SUPPRESS

    def add_arguments_to_parser(self, parser):
        """Add the options beside Lightning's own."""
        parser.add_argument("--name", type=str | None, default=None, help="name of the run; the config's by default")
        parser.add_argument("--output_dir", type=str, default="runs", help="where run directories go")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="a checkpoint, or a run directory whose last one to resume",
        )
        for key, callback in {"checkpoint": StepCheckpoint, **self._callbacks}.items():
            parser.add_lightning_class_args(callback, key)
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.every_n_train_steps": 200})
        parser.link_arguments("model.tokenizer", "data.tokenizer", apply_on="instantiate")
        parser.link_arguments("model.base.source", "data.source", apply_on="parse")

    def before_instantiate_classes(self):
        """Decide hub or embedded once for model and data, print it, and name the run directory."""
        config = self.config
        if not config.config and config.model.base.name is config.model.base.hub is config.model.base.embedded is None:
            raise ValueError(f"name a config: --config NAME; {known_configs()}")
        coders, resumed = "coders" in config.model, config.ckpt_path is not None
        trainer_options.check_trainer(config.trainer, coders, resumed, streamed=bool(config.data.get("stream")))
        if config.name is not None and (not config.name or set(config.name) & set("/\\\0") or config.name[0] == "."):
            raise ValueError(f"--name is {config.name!r}; it must be one file name: the run goes to OUTPUT_DIR/NAME/")
        check_checkpoint(config.checkpoint)
        fill_seeds(config, int(config.seed_everything))
        if config.model.get("routing") is not None:  # its defaults depend on each other
            config.model.routing = Namespace(**RoutingConfig(**vars(config.model.routing)).to_dict())
        if "distill" in config.model:  # so have these, which depend on whether the run routes
            routing = config.model.routing is not None
            distill = DistillConfig(**vars(config.model.distill)).resolved(routing)
            config.model.distill = Namespace(**vars(distill))
            config.model.train = config.model.train or trained_by_default(routing)
        resolved = settle(config)
        stem = config.name or (Path(str(config.config[0])).stem if config.config else "run")
        self.run = RunDirectory.named(Path(config.output_dir), f"{stem}-embedded" if resolved.stand_in else stem)
        self._note: str | None = None  # why a resumed run does not go on where it was
        if config.ckpt_path is not None:
            self._resume(Path(config.ckpt_path))

    def _resume(self, path: Path) -> None:
        """Continue in the checkpoint's run, or in a new one if it has none or if that would lose later steps."""
        self.checkpoint = find_checkpoint(path)
        home, step = run_of(self.checkpoint), step_of(self.checkpoint)
        before = config_in(self.checkpoint) if home is None else read_yaml(home / CONFIG_FILE)
        if before is not None:
            check_resumed(before, self.plain_config())
        if home is None:
            self._note = f"{self.checkpoint} lies in no run's directory"
        elif home == path.absolute() or (last := newest_checkpoint(home)) is None or step_of(last) <= step:
            self.run = RunDirectory(home, is_new=False)
        else:
            self._note = f"{self.checkpoint} has {step} steps and its run has {step_of(last)}"

    def plain_config(self) -> dict[str, Any]:
        """The resolved configuration in plain types, as `config.yaml` has it."""
        return yaml.safe_load(self.parser.dump(self.config, skip_none=False))

    def instantiate_classes(self):
        """Build data, model and trainer; if Lightning refuses something, report it in one line."""
        with trainer_options.one_line():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs):
        """Build the trainer, which writes logs, checkpoints and `--trainer.profiler`'s report in the run directory."""
        options, place = self.config_init.trainer, self.run.path.absolute()
        redone = None if self.checkpoint is None else step_of(self.checkpoint)  # TensorBoard forgets what came after
        self._tensorboard = TensorBoard(place, redone)
        off = {"progress"} if options.enable_progress_bar is False else set()
        if options.enable_checkpointing is False or options.fast_dev_run:
            off.add("checkpoint")
        self.parser.callback_keys = [key for key in self.parser.callback_keys if key not in off]
        if options.fast_dev_run:  # Lightning's checkpoint callback does not mind it at the end
            options.callbacks = [c for c in options.callbacks or [] if not isinstance(c, ModelCheckpoint)]
        trainer = super().instantiate_trainer(
            logger=trainer_options.loggers(options.logger, self._tensorboard),
            plugins=trainer_options.plugins(options.plugins, WholeCheckpointIO()),
            default_root_dir=place,
            **kwargs,
        )
        FinishingLoop.install(trainer)
        callbacks = trainer_options.undeclared(trainer).callbacks
        own = [callback for callback in callbacks if isinstance(callback, _RunFiles)]
        callbacks[:] = [*own, *(callback for callback in callbacks if callback not in own)]
        for callback in own:
            callback.run = self.run
        return trainer

    def fit(self) -> None:
        """Train, with the run directory locked. A run that is refused before its first step leaves nothing behind.

        Raises:
            ValueError: another process is writing this run.
            ConnectionError: another process of this run was lost.
        """
        rehearsal = trainer_options.undeclared(self.trainer).fast_dev_run
        writes = self.trainer.is_global_zero and not rehearsal
        with self.run.hold() if writes else contextlib.nullcontext(), trainer_options.one_line():
            if writes:
                self._move_in()
            if isinstance(self.model, LanguageModel):
                self.model.resumed_from = self.checkpoint
            try:
                self.trainer.fit(self.model, self.datamodule, ckpt_path=self.checkpoint, weights_only=True)
            except Exception as error:
                if (why := why_lost(error, self.trainer)) is not None:
                    raise ConnectionError(why) from error
                raise
        if rehearsal and self.trainer.is_global_zero:
            print(f"fast_dev_run: {int(rehearsal)} batch(es) of training and of validation passed; nothing is written")

    def _move_in(self) -> None:
        """Tell all that was built the directory's final name, and print where a resumed run continues."""
        place, profiler = str(self.run.path.absolute()), trainer_options.undeclared(self.trainer).profiler
        move_root(self.trainer, place)
        self._tensorboard.move(place)
        if self.config_init.trainer.profiler is not None:  # the default one writes to a log that `quiet` has silenced
            profiler.dirpath, profiler.filename = profiler.dirpath or place, profiler.filename or "profile"
        if self._note is not None:
            print(f"{self._note}: going on in a new run directory, {self.run.path}", flush=True)


def fill_seeds(options: Any, seed: int) -> None:
    """Set every `seed` that is null in a configuration, or in what it contains.

    >>> fill_seeds(config := Namespace(data=Namespace(seed=None), sites=[Namespace(seed=2)]), 1)
    >>> config
    Namespace(data=Namespace(seed=1), sites=[Namespace(seed=2)])
    """
    if isinstance(options, Namespace):
        for name, value in vars(options).items():
            if name == "seed" and value is None:
                options[name] = seed
            fill_seeds(value, seed)
    elif isinstance(options, list | dict):
        for value in options.values() if isinstance(options, dict) else options:
            fill_seeds(value, seed)
