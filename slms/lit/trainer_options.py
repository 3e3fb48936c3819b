"""Checks Lightning's Trainer options: train.py uses each as Lightning documents it, or refuses it in one line.

It refuses an option before anything is read or written, gives the reason, and leaves the option out of `--help`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from jsonargparse import Namespace
from lightning import Callback, LightningDataModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from slms.lit.logger import TensorBoard

Data = TypeVar("Data", bound=LightningDataModule)

STRATEGIES = ("auto", "ddp", "fsdp2", "fsdp2_sharded")
CODER_STRATEGIES = ("auto", "ddp")  # a coder is small; what it reads is not sharded

REFUSED: dict[str, tuple[Any, str]] = {
    "barebones": (False, "a run without logs and checkpoints has no results"),
    "default_root_dir": (None, "--output_dir says where run directories go"),
    "inference_mode": (True, "Lightning validates a run under no_grad in any case"),
    "limit_predict_batches": (None, "train.py predicts nothing"),
    "limit_test_batches": (None, "train.py tests nothing; `eval.py perplexity RUN --split test` does"),
    "model_registry": (None, "checkpoints stay in the run directory"),
    "reload_dataloaders_every_n_epochs": (0, "the text stays what it is while a run trains"),
    "sync_batchnorm": (False, "these models have no batch normalisation"),
    "use_distributed_sampler": (False, "`data` deals blocks to processes itself"),
}
"""Option → the only accepted value, and why."""


def check_trainer(trainer: Namespace, coders: bool = False, resumed: bool = False, streamed: bool = False) -> None:
    """Refuse options that a run cannot honour.

    Args:
        trainer: the options as parsed.
        coders: whether sparse autoencoders are trained, not a language model.
        resumed: whether the run continues from a checkpoint.
        streamed: whether text is read while training.

    Raises:
        ValueError: an option is refused; the message names it, its value and the rule.
    """
    for name, rule in _complaints(trainer, coders, resumed, streamed):
        raise ValueError(f"--trainer.{name} is {_shown(trainer.get(name))}; {rule}")


def _complaints(trainer: Namespace, coders: bool, resumed: bool, streamed: bool) -> Iterator[tuple[str, str]]:
    for name, (taken, reason) in REFUSED.items():
        if trainer.get(name) != taken:
            yield name, reason
    strategies = CODER_STRATEGIES if coders else STRATEGIES
    if trainer.strategy not in strategies:
        yield "strategy", f"it must be one of {', '.join(strategies)}"
    if trainer.precision == "16-true":
        yield "precision", "gradients underflow in it; take bf16-true, bf16-mixed or 16-mixed"
    if str(trainer.precision).startswith("transformer-engine"):
        yield "precision", "it replaces the layers that are routed; take bf16-mixed"
    if coders and trainer.gradient_clip_algorithm not in (None, "norm"):
        yield "gradient_clip_algorithm", "a coder's gradient is clipped by its norm"
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_val < 0:
        yield "gradient_clip_val", "it must not be negative"
    if trainer.limit_train_batches == 0:
        yield "limit_train_batches", "it must be above 0: a run trains"
    if trainer.log_every_n_steps is not None and trainer.log_every_n_steps < 1:
        yield "log_every_n_steps", "it must be at least 1"
    for name in ("max_epochs", "max_steps"):
        if trainer.get(name) == 0:
            yield name, "it must be above 0: a run trains"
    if trainer.max_steps == -1 and trainer.max_epochs in (None, -1) and not trainer.fast_dev_run:
        yield "max_epochs", "the learning rate's schedule needs an end; give max_epochs or max_steps"
    if streamed and trainer.overfit_batches:
        yield "overfit_batches", "it needs data.stream=false: a stream is not read again"
    if resumed and trainer.fast_dev_run:
        yield "fast_dev_run", "it tries the start of a run; leave out --ckpt_path"


def _shown(value: Any) -> str:
    return f"{value.class_path if isinstance(value, Namespace) else value!s:.80}" if value is not None else "null"


def plugins(requested: Any, own: CheckpointIO) -> list[Any]:
    """The plugins that you asked for, and the one that writes checkpoints."""
    given = [] if requested is None else list(requested) if isinstance(requested, Iterable) else [requested]
    for plugin in given:
        if isinstance(plugin, CheckpointIO):
            raise ValueError(
                f"--trainer.plugins has {type(plugin).__name__}; {type(own).__name__} writes checkpoints, whole or not "
                "at all"
            )
    return [*given, own]


class Undeclared(Protocol):
    """The attributes that Lightning sets on a Trainer without declaring them."""

    callbacks: list[Callback]
    datamodule: LightningDataModule
    fast_dev_run: bool | int
    log_every_n_steps: int
    profiler: Profiler


def undeclared(trainer: Trainer) -> Undeclared:
    """The trainer, typed with the attributes that Lightning does not declare."""
    return cast(Undeclared, trainer)


def data_of(trainer: Trainer, kind: type[Data]) -> Data:
    """The data module of the trainer's run."""
    data = undeclared(trainer).datamodule
    assert isinstance(data, kind), data
    return data


def run_directory(trainer: Trainer) -> Path:
    """The trainer's `default_root_dir`, where a run's files go. It is broadcast, so every rank must call this."""
    return Path(trainer.strategy.broadcast(trainer.default_root_dir))


def logs_step(trainer: Trainer, step: int) -> bool:
    """Whether optimizer step `step` (from 1) logs its losses: every `log_every_n_steps`-th does, and the last."""
    return step % undeclared(trainer).log_every_n_steps == 0 or step == trainer.estimated_stepping_batches


def loggers(requested: Logger | Iterable[Logger] | bool | None, default: TensorBoard) -> list[Logger]:
    """The loggers of a run: those requested, else `default`; none for False. `metrics.csv` is written in any case.

    `default` takes the place of a requested `TensorBoard` that names no directory.
    """
    if requested is None or requested is True:
        return [default]
    given = [requested] if isinstance(requested, Logger) else list(requested or [])
    return [default if isinstance(one, TensorBoard) and not one.save_dir else one for one in given]


@contextmanager
def one_line() -> Iterator[None]:
    """Turn Lightning's complaints about its options, and missing packages of loggers or plugins, into a ValueError."""
    try:
        yield
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(str(error)) from error
