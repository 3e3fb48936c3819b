"""Gives types to the parts of a run that callbacks read, because Lightning declares its attributes as anything."""

import ctypes
import gc
import sys
from typing import cast

from lightning.pytorch import LightningModule, Trainer

from slms.data.module import TextData
from slms.lit.language_model import LanguageModel
from slms.lit.sparse_autoencoder import SparseAutoencoder
from slms.lit.trainer_options import undeclared


def language_model(pl_module: LightningModule) -> LanguageModel:
    """The module under training: `net`, `tokenizer`, `base`, `routing`, `role`, `base_loss`, `last_routes`."""
    return cast(LanguageModel, pl_module)


def text_data(trainer: Trainer) -> TextData:
    """The data module: `val_blocks`, `train_blocks`, `val_dataloader()`, `corpus_name`, sizes."""
    return cast(TextData, undeclared(trainer).datamodule)


def coders(pl_module: LightningModule) -> SparseAutoencoder:
    """The module under training: `measured`, `export(directory)`."""
    return cast(SparseAutoencoder, pl_module)


def leaves_files(trainer: Trainer) -> bool:
    """Whether this process writes results: the first rank, and not in a `fast_dev_run`."""
    return trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False)


def release_memory() -> None:
    """Hand freed memory back to the system, because glibc keeps what figures and tables leave behind.

    Without it, a run of tiny steps grows by some MB at each validation (docs/log.md).
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
        if trim is not None:
            trim(0)
