"""Runs tiny jobs of train.py in this process under chosen options of the Trainer, and records what they did."""

from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch

from slms.callbacks import CALLBACKS, CODER_CALLBACKS
from slms.cli import one_line_errors
from slms.lit.cli import TrainCLI
from slms.lit.sparse_autoencoder import SparseAutoencoder
from slms.models.activation_stream import ActivationData
from slms.report.metrics_csv import read_rows
from tests.processes import flags

JOBS = ("language model", "coders")
BATCHES = 6  # of an epoch


class Watch(L.Callback):
    """What happened at each step and validation."""

    def __init__(self):
        self.batches: list[list[list[float]]] = []  # of each epoch
        self.gradients: list[float] = []
        self.largest: list[float] = []
        self.flags: dict[str, bool] = {}
        self.validated: list[tuple[bool, int]] = []  # whether in the sanity check, and after which step

    def on_train_epoch_start(self, trainer, module):
        self.batches.append([])

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        first = next(iter(batch.values()))
        self.batches[-1].append(first.flatten()[:16].tolist())
        self.flags = {
            "anomaly": torch.is_anomaly_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "benchmark": torch.backends.cudnn.benchmark,
        }

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]  # as clipped
        self.gradients.append(float(torch.nn.utils.get_total_norm(gradients)))
        self.largest.append(max(float(g.abs().max()) for g in gradients))

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.validated.append((trainer.sanity_checking, trainer.global_step))


@dataclass
class Outcome:
    """A finished run."""

    cli: TrainCLI
    watch: Watch
    out: Path
    printed: str
    job: str

    @property
    def trainer(self):
        return self.cli.trainer

    @property
    def run(self) -> Path:
        (made,) = (self.out / "runs" / "r").iterdir()
        return made

    def rows(self, stage: str, metric: str = "") -> list:
        rows = read_rows(self.run / "metrics.csv")
        return [row for row in rows if row.stage == stage and (not metric or row.metric == metric)]

    def steps(self, stage: str, metric: str = "") -> list[int]:
        return sorted({row.step for row in self.rows(stage, metric)})

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.out.rglob(pattern))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.cli.model.parameters()).dtype


def start(job: str, folder: Path, out: Path, options: list[str]) -> TrainCLI:
    """The command line of a tiny job."""
    trainer = [f"--trainer.{option}" for option in options]
    if job == "language model":
        more = ["--model.routing=null", "--checkpoint.every_n_train_steps=3", f"--output_dir={out / 'runs'}", *trainer]
        return TrainCLI({**CALLBACKS, "watch": Watch}, flags(folder, "r", *more))
    args = [
        "--config=sae_tinystories.yaml",
        f"--model.base.name={folder / 'base'}",
        "--model.base.tokenizer=null",
        "--model.coders=[{site: residual.0, coder: {kind: topk, d_sae: 48, k: 4}}]",
        "--data.corpus.name=stories",
        "--data.block_size=32",
        "--data.buffer={batch_size: 64, chunk_tokens: 512, lm_batch_size: 4}",
        "--data.train_tokens=2048",
        f"--data.epoch_tokens={64 * BATCHES}",
        "--data.val_tokens=480",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        "--checkpoint.every_n_train_steps=3",
        f"--output_dir={out / 'runs'}",
        "--name=r",
        *trainer,
    ]
    return TrainCLI({**CODER_CALLBACKS, "watch": Watch}, args, SparseAutoencoder, ActivationData)


def run(job: str, folder: Path, out: Path, options: list[str], capsys) -> Outcome:
    with one_line_errors("train.py"):
        cli = start(job, folder, out, options)
        cli.fit()
    (watch,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, Watch)]
    said = capsys.readouterr()
    return Outcome(cli, watch, out, said.out + said.err, job)
