"""The directory that a run writes into, which this process makes, or which a checkpoint's run already has.

A refused run removes what it made, and nothing else.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from slms.files import PART, remove_unfinished, sole_owner
from slms.lit.parser import read_yaml

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
SECTIONS = {"seed_everything", "trainer", "model", "data", "name", "output_dir", "ckpt_path", "checkpoint"}
EARLY = ("events.out.tfevents.*", "hparams.yaml", "*-profile*.txt", f"{PART}*")
"""Files that Lightning and its loggers may write before a run has passed every check."""


def is_run(directory: Path) -> bool:
    """Whether `directory` holds the `config.yaml` of a run, as `train.py` writes it."""
    file = directory / CONFIG_FILE
    config = read_yaml(file) if file.is_file() else None
    return isinstance(config, dict) and config.keys() >= SECTIONS


def run_of(checkpoint: Path) -> Path | None:
    """The run whose `checkpoints/` holds `checkpoint`, at any depth; None if it lies in no run's directory.

    Symbolic links are not followed: a link beside your own files does not make their directory a run, and a link to a
    run is that run.
    """
    path = checkpoint.absolute()
    path = path.resolve() if ".." in path.parts else path
    places = (parent.parent for parent in path.parents if parent.name == CHECKPOINTS)
    return next((place for place in places if is_run(place)), None)


class RunDirectory:
    """The directory of one run.

    Args:
        path: a run's directory to continue, or a directory to make.
        is_new: whether to make it. If a directory of that name exists, it stays as it is and the new one is NAME-2.
    """

    def __init__(self, path: Path, is_new: bool):
        self.path, self.is_new = path, is_new
        self.started = False

    @classmethod
    def named(cls, output_dir: Path, name: str) -> "RunDirectory":
        """A new directory, called by the run's name and the time."""
        return cls(output_dir / name / datetime.now().strftime("%Y%m%d-%H%M%S"), is_new=True)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Make the directory if it is new, and keep other processes out of it.

        If the run has not started by the end, whatever the reason, what was made for it is removed.

        Raises:
            ValueError: another process is writing this run.
            OSError: the directory cannot be made or written.
        """
        made: list[Path] = []
        try:
            if self.is_new:
                self._make(made)
            before = set(self.path.iterdir())
            with sole_owner(self.path) as lock:
                try:
                    yield
                finally:
                    if not self.started:
                        self._remove_early(before | {lock})
                        if lock not in before:
                            lock.unlink(missing_ok=True)
        finally:
            if not self.started:
                for directory in reversed(made):
                    with contextlib.suppress(OSError):  # not empty: someone else has written into it
                        directory.rmdir()

    def start(self) -> None:
        """Keep the directory from here on, since all is checked, and remove what a killed run left half written.

        Only the process that holds the directory calls this.
        """
        self.started = True
        remove_unfinished(self.path)

    def _make(self, made: list[Path]) -> None:
        """Make the directory and its parents, and add each to `made`."""
        stem, number = self.path.name, 1
        while True:
            for parent in reversed(self.path.absolute().parents):
                if not parent.is_dir():
                    with contextlib.suppress(FileExistsError):  # another run has just made it
                        parent.mkdir()
                        made.append(parent)
            try:
                self.path.mkdir()
            except FileExistsError:  # two runs in one second
                number += 1
                self.path = self.path.with_name(f"{stem}-{number}")
            except FileNotFoundError:  # a refused run has just taken the parent that it made away
                if not os.path.lexists(self.path.parent):
                    continue
                raise
            else:
                made.append(self.path)
                return

    def _remove_early(self, before: set[Path]) -> None:
        for pattern in EARLY:
            for file in set(self.path.glob(pattern)) - before:
                if not file.is_dir():
                    file.unlink(missing_ok=True)
