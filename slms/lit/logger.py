"""TensorBoard that cannot end a run: its files stay small however long the run is, and if its writer fails, the run
warns once and continues without it.
"""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

logger = logging.getLogger(__name__)

FULL = {"add_scalar": 4096, "add_figure": 32, "add_text": 32, "add_histogram": 32}


def is_kept(n: int, full: int) -> bool:
    """Whether the n-th entry of a tag (from 0) is written: the first `full`, then every second up to twice as many,
    every fourth up to four times as many, …: N entries leave about full · (1 + log₂(N/full)/2).

    >>> [n for n in range(32) if is_kept(n, 4)]
    [0, 1, 2, 3, 4, 6, 8, 12, 16, 24]
    """
    return n % (1 << (n // full).bit_length()) == 0


class TensorBoard(TensorBoardLogger):
    """Bounds the files of Lightning's TensorBoard logger, and gives the writer up at its first OSError.

    It writes each tag's first 4,096 scalars and 32 figures, texts or histograms, and ever fewer of later ones
    (`is_kept`). TensorBoard itself shows 1,000 scalars and 10 figures of a tag. `metrics.csv` has every number.

    Args:
        save_dir: the directory of the events; without one, a run writes them into its own directory.
        purge_step: TensorBoard forgets what was written from this step on.
    """

    failed = False
    place: str | None = None

    def __init__(self, save_dir: str | Path = "", purge_step: int | None = None):
        super().__init__(save_dir=save_dir, name="", version="", default_hp_metric=False, purge_step=purge_step)
        self.written: Counter[tuple[str, str]] = Counter()  # entries so far by method and tag

    def move(self, directory: str) -> None:
        """Write to another directory; call it before anything is written."""
        self.place = directory

    @property
    def save_dir(self) -> str:
        """The same directory as `root_dir`, because each directory holds one run."""
        return self.place or super().save_dir

    @property
    def root_dir(self) -> str:
        """The directory given at first, or the one moved to."""
        return self.place or super().root_dir

    @property
    def experiment(self) -> Any:
        """The SummaryWriter; once it has failed, a stand-in that accepts every call and does nothing."""
        return _Guarded(self, lambda: super(TensorBoard, self).experiment)

    @rank_zero_only
    def give_up(self, error: OSError) -> None:
        """Stop writing, and warn once."""
        if not self.failed:
            logger.warning("TensorBoard cannot write (%s); the run goes on without it, see metrics.csv", error)
        self.failed = True


class _Guarded:
    """Passes every call to the writer until one fails."""

    def __init__(self, owner: TensorBoard, writer: Callable[[], Any]):
        self._owner, self._writer = owner, writer

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._owner.failed:
                return None
            if name in FULL:
                key = (name, args[0] if args else kwargs["tag"])
                self._owner.written[key] += 1
                if not is_kept(self._owner.written[key] - 1, FULL[name]):
                    return None
            try:
                return getattr(self._writer(), name)(*args, **kwargs)
            except OSError as error:
                self._owner.give_up(error)
                return None

        return call
