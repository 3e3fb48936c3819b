"""What the parts of `benchmarks.gpu` share: where they run, how long, and how they leave something out."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

Row = dict[str, object]
"""One line of a part's table; with the keys `left_out` and `why`, something that was not measured."""


class Setting(NamedTuple):
    """Where a part runs and until when."""

    device: str
    """cuda, or cpu for a dry run on tiny shapes"""
    deadline: float
    """by `time.monotonic`; nothing is begun after it"""

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    @property
    def seconds(self) -> float:
        """How long to measure one row; at least five rounds are run."""
        return 0.0 if self.dry else 0.25

    def rows(self, what: str, make: Callable[[], Iterable[Row]]) -> Iterator[Row]:
        """Yield the rows of `make`, or why there are none: no time is left, or it failed, as on an absent package."""
        if time.monotonic() > self.deadline:
            yield {"left_out": what, "why": "no time was left"}
            return
        try:
            yield from make()
        except Exception as error:  # whatever fails, what comes after it is still measured
            said = (str(error).strip().splitlines() or [""])[0]
            yield {"left_out": what, "why": f"{type(error).__name__}: {said[:200]}"}
