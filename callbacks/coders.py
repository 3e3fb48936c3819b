"""Writes each coder of a run to a SAELens directory: after every validation, at the end, and on an interruption."""

import logging
from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from slms.callbacks.parts import coders, leaves_files
from slms.files import scratch
from slms.lit.trainer_options import run_directory, undeclared
from slms.report.tables import interval, number, share, text_table
from slms.sae.quality import Quality

logger = logging.getLogger(__name__)


def coder_table(measured: Mapping[str, Quality]) -> str:
    """The last validation's numbers, one line for each coder."""
    head = ["coder", "latents", "L0", "FVU", "95 % interval", "CE recovered", "dead"]
    rows = []
    for name, q in measured.items():
        fvu = number(q.fvu.value, 4), interval(q.fvu.low, q.fvu.high, 4)
        recovered = number(q.recovered["zero"].value, 4)
        rows.append([name, f"{len(q.density):,}", number(q.l0.value, 1), *fvu, recovered, share(q.dead)])
    return text_table(head, rows)


class CoderWriter(Callback):
    """Writes `saes/NAME/` into the run directory; on an exception or a signal also `checkpoints/last.ckpt`.

    The module has `export(directory)`, which returns lines about coders that other tools, or nobody, can read.
    """

    def __init__(self) -> None:
        super().__init__()
        self._started = False
        self._written = -1  # the step
        self._said: set[str] = set()  # lines about the export

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try the export before the first step, so that you learn now which coders SAELens cannot read."""
        directory = run_directory(trainer)
        if leaves_files(trainer):
            with scratch(directory) as place:
                self._say(coders(pl_module).export(place, trial=True))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark that everything has been restored: from here on there is something to save."""
        self._started = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the coders as they are."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the coders at the end of a run too, because it may validate seldom or not at all."""
        if trainer.global_step != self._written:
            self._write(trainer, pl_module)
        if leaves_files(trainer):
            print(f"\n{coder_table(coders(pl_module).measured)}\n\nwritten to {run_directory(trainer)}", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the coders and a checkpoint; SIGTERM and Ctrl-C arrive here after the batch that they interrupt."""
        interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if self._started and trainer.global_step > 0 and interrupted and not undeclared(trainer).fast_dev_run:
            trainer.save_checkpoint(run_directory(trainer) / "checkpoints" / "last.ckpt")
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory, self._written = run_directory(trainer), trainer.global_step
        if leaves_files(trainer):
            self._say(coders(pl_module).export(directory / "saes"))

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            if line not in self._said:
                logger.warning("%s", line)
        self._said |= set(lines)
