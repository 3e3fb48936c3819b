"""Writes `metrics.csv`: every number that any callback or module logs, one row for each."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from slms.lit.trainer_options import logs_step, run_directory
from slms.report.metrics_csv import METRICS_FILE, Logged, append_rows, read_rows, split_key, write_rows


class TidyCsvLogger(Logger):
    """Appends each logged number to `metrics.csv` as (step, epoch, stage, metric, place, value)."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.epoch = 0
        self._step, self._written = -1, set[str]()  # what the file has of the latest step

    @property
    def name(self) -> str:
        """A constant, because a run has one file."""
        return "metrics"

    @property
    def version(self) -> str:
        """A constant, like the name."""
        return "csv"

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self.path.parent)

    def log_hyperparams(self, *args, **kwargs) -> None:
        """Do nothing: hyper-parameters are no numbers over time, and config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the metrics that the step does not have yet; Lightning adds `epoch`, which becomes a column."""
        metrics, step = dict(metrics), step or 0
        self.epoch = int(metrics.pop("epoch", self.epoch))
        if step != self._step:
            self._step, self._written = step, set()
        new = {key: value for key, value in metrics.items() if key not in self._written}
        self._written |= set(new)
        append_rows(self.path, [Logged(step, self.epoch, *split_key(k), float(v)) for k, v in new.items()])

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Drop the rows from `step` on, which a run resumed there writes again, and a last line that a kill cut off."""
        self._step = -1
        if self.path.is_file():
            write_rows(self.path, [row for row in read_rows(self.path, torn_tail=True) if row.step < step])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Sort the rows by step; of rows that a resumed run measured twice, keep the last."""
        if status == "success" and self.path.is_file():
            rows = {(row.step, row.stage, row.metric, row.place): row for row in read_rows(self.path)}
            write_rows(self.path, sorted(rows.values(), key=lambda row: row.step))


class MetricsCsv(Callback):
    """Writes `metrics.csv` in the run directory."""

    def __init__(self) -> None:
        super().__init__()
        self.logger: TidyCsvLogger | None = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the CSV logger behind the trainer's own."""
        directory = run_directory(trainer)
        if stage == "fit" and self.logger is None and not getattr(trainer, "fast_dev_run", False):
            if (file := directory / METRICS_FILE).exists():
                read_rows(file, torn_tail=True)  # a file that is no such table is refused before the run begins
            self.logger = TidyCsvLogger(directory / METRICS_FILE)
            trainer.loggers = [*trainer.loggers, self.logger]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue a resumed run's file, or begin a new one."""
        self._step = trainer.global_step
        if self.logger is not None:
            self.logger.resume_at(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Write a step's rows before its checkpoint. Lightning logs after it, so a kill in between would lose them."""
        step, before, self._step = trainer.global_step, self._step, trainer.global_step
        if self.logger is not None and step != before and logs_step(trainer, step):
            metrics = {key: float(v) for key, v in trainer.callback_metrics.items() if key.startswith("train/")}
            self.logger.log_metrics(metrics | {"epoch": trainer.current_epoch}, step - 1)


def log_at(trainer: Trainer, values: dict[str, float], step: int, epoch: int) -> None:
    """Log `values` of a step, which may be an earlier one; `epoch` goes to `metrics.csv`, where it is a column."""
    for logger in trainer.loggers:
        logger.log_metrics(values | ({"epoch": epoch} if isinstance(logger, TidyCsvLogger) else {}), step)
