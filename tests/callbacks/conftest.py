"""A real run that takes a few seconds: the callbacks on a two-layer model and a thousand validation tokens."""

from pathlib import Path
from typing import NamedTuple

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from slms.callbacks import Evolution, MetricsCsv, ResultsWriter, Specialization
from slms.data.corpora import CorpusConfig
from slms.data.module import TextData
from slms.lit.language_model import LanguageModel
from slms.models.base import BaseConfig
from slms.routing import RoutingConfig

ROUTING = RoutingConfig(n_pathways=4, k=2, every_n_layers=1, router_hidden=8)


class Fit(NamedTuple):
    """A finished run."""

    directory: Path
    trainer: L.Trainer
    model: LanguageModel
    data: TextData
    callbacks: dict[str, L.Callback]
    printed: str


def make_module(routing: RoutingConfig | None = ROUTING) -> LanguageModel:
    L.seed_everything(0, verbose=False)
    base = BaseConfig(name="stories-1m", init="random", d_model=16, n_layers=2, n_heads=2)
    return LanguageModel(base, routing, calibration_tokens=256)


def make_data(model: LanguageModel) -> TextData:
    return TextData(
        CorpusConfig(name="stories"),
        model.tokenizer,
        "embedded",
        block_size=32,
        batch_size=4,
        train_tokens=2048,
        epoch_tokens=512,
        val_tokens=1536,
    )


def make_trainer(directory: Path, callbacks: list[L.Callback], **options) -> L.Trainer:
    if "logger" not in options:
        options["logger"] = TensorBoardLogger(directory, "", "", default_hp_metric=False)
    options = {"max_epochs": 2, "num_sanity_val_steps": 1, "enable_checkpointing": False} | options
    return L.Trainer(
        default_root_dir=directory,
        callbacks=callbacks,
        accelerator="cpu",
        use_distributed_sampler=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.fixture(scope="session")
def make():
    """The three makers, for tests that need a run of their own."""
    return make_module, make_data, make_trainer


@pytest.fixture(scope="session")
def fit(tmp_path_factory):
    """Two epochs of four steps, every callback, a probe every three steps."""
    import contextlib
    import io

    directory = tmp_path_factory.mktemp("runs") / "tiny" / "20250101"
    callbacks = {
        "metrics_csv": MetricsCsv(),
        "specialization": Specialization(every_n_steps=3, probe_batches=2, heatmaps=("pos", "semantic")),
        "evolution": Evolution(probe_tokens=100),
        "results": ResultsWriter(),
    }
    trainer = make_trainer(directory, list(callbacks.values()))
    model = make_module()
    data = make_data(model)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        trainer.fit(model, data)
    return Fit(directory, trainer, model, data, callbacks, printed.getvalue())


@pytest.fixture(scope="session")
def events(fit):
    """Everything TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)
    accumulator = EventAccumulator(str(fit.directory), size_guidance=sizes)
    return accumulator.Reload()
