"""The training command line: one YAML → one run directory.

Everything is a LightningCLI option: `--model.routing.k=2`, `--data.batch_size=8`, `--trainer.max_epochs=1`; a value
given on the command line wins over the YAML. A user's mistake ends in one line on stderr and exit code 2.
"""

import contextlib
import logging
import shutil
import warnings
from datetime import datetime
from pathlib import Path

import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from slms.data.module import TextData
from slms.files import sole_owner
from slms.lit import strategies, trainer_options
from slms.lit.checkpoint import StepCheckpoint, WholeCheckpointIO, find_checkpoint, step_of
from slms.lit.language_model import LanguageModel
from slms.lit.logger import TensorBoard
from slms.lit.parser import FindConfig, TrainParser
from slms.lit.trainer_options import run_directory
from slms.models.base import resolve


class _SaveConfig(SaveConfigCallback):
    """Writes the resolved config once training really starts, so that a refused run leaves nothing behind."""

    def setup(self, trainer, pl_module, stage):
        """Nothing yet: the data and the model have not been checked."""

    def on_train_start(self, trainer, pl_module):
        """Write `config.yaml` beside the run's other files; loggers that keep hyper-parameters get them too."""
        directory = run_directory(trainer)
        if trainer.is_global_zero:
            directory.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, directory / "config.yaml", skip_none=False, overwrite=True)
            if trainer.enable_autolog_hparams:
                config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
                for logger in trainer.loggers:
                    if not isinstance(logger, TensorBoardLogger):  # whose row is written with the final numbers
                        logger.log_hyperparams(config)


def quiet() -> None:
    """Keep what concerns the user; drop advertisements and notices about Lightning's own internals."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for notice in (".*LeafSpec.*", ".*smaller than the logging interval.*", ".*does not have many workers.*",
                   ".*Checkpoint directory .* exists.*", ".*`broadcast_buffers` is deprecated.*",
                   ".*self.log\\('val/.*sync_dist.*"):  # fmt: skip  # what is logged has been summed over ranks
        warnings.filterwarnings("ignore", message=notice)


class TrainCLI(LightningCLI):
    """Parses, resolves where base and corpus come from, names the run directory, builds trainer, model and data.

    Args:
        callbacks: config key → callback class; each gets its options under that key.
        args: the command line; by default the process's own.
        module: what is trained.
        data: what it is trained on.
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
            module,
            data,
            run=False,
            args=args,
            parser_class=TrainParser,
            parser_kwargs={"prog": "train.py", "description": __doc__},
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=_SaveConfig,
            trainer_defaults={
                "gradient_clip_val": 1.0,
                "use_distributed_sampler": False,  # TextData deals blocks to ranks itself
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
        )

    def init_parser(self, **kwargs):
        """The parser, whose `--config` also looks into configs/."""
        parser = self.parser_class(**kwargs)
        parser.add_argument("-c", "--config", action=FindConfig, help="a YAML file, or a name in configs/")
        return parser

    def add_arguments_to_parser(self, parser):
        """Options beside Lightning's own."""
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
        """Decide hub or embedded once for model and data, say so, and name the run directory."""
        config = self.config
        coders, resumed = "coders" in config.model, config.ckpt_path is not None
        trainer_options.check_trainer(config.trainer, coders, resumed, streamed=bool(config.data.get("stream")))
        if config.name is not None and (not config.name or set(config.name) & set("/\\\0") or config.name[0] == "."):
            raise ValueError(f"--name is {config.name!r}; it must be one file name: the run goes to OUTPUT_DIR/NAME/")
        resolved = resolve(config.model.base)
        config.model.base.source = config.data.source = resolved.kind
        print(resolved.note, flush=True)
        if config.ckpt_path is not None:
            self.checkpoint = find_checkpoint(Path(config.ckpt_path))
            self.directory = self.checkpoint.parent.parent
        else:
            stem = config.name or (Path(str(config.config[0])).stem if config.config else "run")
            name = f"{stem}-embedded" if resolved.stand_in else stem
            self.directory = Path(config.output_dir) / name / datetime.now().strftime("%Y%m%d-%H%M%S")

    def instantiate_classes(self):
        """Data, model and trainer; what Lightning refuses is one line."""
        with trainer_options.one_line():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs):
        """The trainer, which logs, keeps checkpoints and writes `--trainer.profiler`'s report in the run directory."""
        options, place = self.config_init.trainer, self.directory.absolute()
        redone = None if self.checkpoint is None else step_of(self.checkpoint)  # TensorBoard forgets what came after
        tensorboard = TensorBoard(place, "", "", default_hp_metric=False, purge_step=redone)
        off = {"progress"} if options.enable_progress_bar is False else set()
        if options.enable_checkpointing is False or options.fast_dev_run:
            off.add("checkpoint")
        self.parser.callback_keys = [key for key in self.parser.callback_keys if key not in off]
        if options.fast_dev_run:  # Lightning's checkpoint callback does not mind it at the end
            options.callbacks = [c for c in options.callbacks or [] if not isinstance(c, ModelCheckpoint)]
        trainer = super().instantiate_trainer(
            logger=trainer_options.loggers(options.logger, tensorboard),
            plugins=trainer_options.plugins(options.plugins, WholeCheckpointIO()),
            default_root_dir=place,
            **kwargs,
        )
        profiler = trainer.profiler  # by default it writes to a log that `quiet` has silenced
        if options.profiler is not None and trainer.is_global_zero:  # whose clock names the directory
            profiler.dirpath, profiler.filename = profiler.dirpath or place, profiler.filename or "profile"
        return trainer

    def fit(self) -> None:
        """Train, alone in the run directory. A run refused before its first step leaves no directory behind.

        Raises:
            ValueError: another process is writing this run.
            ConnectionError: another process of this run was lost.
        """
        rehearsal, writes = self.trainer.fast_dev_run, self.trainer.is_global_zero and not self.trainer.fast_dev_run
        with sole_owner(self.directory) if writes else contextlib.nullcontext(), trainer_options.one_line():
            try:
                self.trainer.fit(self.model, self.datamodule, ckpt_path=self.checkpoint, weights_only=True)
            except Exception as error:
                if writes and not (self.directory / "config.yaml").exists():
                    self._remove_directory()
                if self.trainer.world_size > 1 and _is_lost_connection(error):
                    raise ConnectionError(
                        f"rank {self.trainer.global_rank}: another process of this run stopped "
                        f"({str(error).splitlines()[0]}); resume with --ckpt_path={self.directory}"
                    ) from error
                raise
        if rehearsal and self.trainer.is_global_zero:
            print(f"fast_dev_run: {int(rehearsal)} batch(es) of training and of validation passed; nothing is written")

    def _remove_directory(self) -> None:
        """What a refused run would leave behind; no `config.yaml` yet."""
        shutil.rmtree(self.directory, ignore_errors=True)
        for parent in (self.directory.parent, self.directory.parents[1]):
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _is_lost_connection(error: Exception) -> bool:
    """Whether a collective failed because another process is gone; Gloo says so in a plain RuntimeError."""
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
