"""Trains language models for a few steps in this process, for tests of what a step does and of what resumes."""

from pathlib import Path
from typing import Any

import lightning

from slms.data.corpora import CorpusConfig
from slms.data.module import TextData
from slms.lit.language_model import LanguageModel


def fit_briefly(model: LanguageModel, sizes: dict[str, int], ckpt_path: Path | None = None, **options: Any):
    """Train on the embedded stories, in blocks and batches of `sizes`; returns the trainer."""
    trainer = lightning.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        use_distributed_sampler=False,
        **options,
    )
    data = TextData(CorpusConfig(name="stories"), model.tokenizer, **sizes)
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


class Middle(lightning.Callback):
    """Keeps the run as it is after a batch, as `directory`/middle.ckpt."""

    def __init__(self, directory: Path, batch: int):
        self.directory, self.batch = directory, batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == self.batch:
            trainer.save_checkpoint(self.directory / "middle.ckpt")
