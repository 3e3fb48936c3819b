"""TensorBoard that cannot end a run: where its writer fails, one warning, and the run goes on without it."""

import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

logger = logging.getLogger(__name__)


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger, whose writer is given up at its first OSError: `metrics.csv` has every number."""

    failed = False

    @property
    def experiment(self) -> Any:
        """The SummaryWriter; once it has failed, what takes every call and does nothing."""
        return _Guarded(self, lambda: super(TensorBoard, self).experiment)

    @rank_zero_only
    def give_up(self, error: OSError) -> None:
        """Say so once."""
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
            try:
                return getattr(self._writer(), name)(*args, **kwargs)
            except OSError as error:
                self._owner.give_up(error)
                return None

        return call
