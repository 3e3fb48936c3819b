"""Shows the progress of long work: a bar on a terminal, or an occasional line when stderr goes to a file."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")

FIRST_S = 15.0
"""Seconds of silence before the first line; work that takes less says nothing."""

MANY = 10
"""Of so many updates, the first is left out of the estimate of the time left."""


class Pace:
    """Says when the next line is due: after `FIRST_S`, then each time the elapsed time has grown by a tenth."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()

    def due(self) -> bool:
        """Return whether a line is due now; if so, start waiting for the next one."""
        now = time.monotonic()
        if now - self.last < max(FIRST_S, (now - self.started) / 10):
            return False
        self.last = now
        return True


class Progress:
    """Counts the steps of one piece of work by `update`; it may be nested in another.

    Args:
        what: the work, in a word or two.
        total: the number of steps; None if it is not known.
        unit: the name of a step on the bar, such as `token`.
    """

    _open: list["Progress"] = []  # noqa: RUF012  shared on purpose: a line names the outer work too
    _pace: Pace | None = None

    def __init__(self, what: str, total: int | None = None, unit: str = "it"):
        self.what, self.total, self.done = what, total, 0
        self._begun = time.monotonic(), 0
        self._bar = tqdm(total=total, desc=what, unit=unit, leave=False, delay=2) if sys.stderr.isatty() else None
        if not self._open:
            Progress._pace = Pace()
        self._open.append(self)

    def update(self, steps: int = 1, what: str | None = None) -> None:
        """Count steps; `what` names the work that comes next."""
        first = self.done == 0
        self.done += steps
        if first and self.total is not None and self.total >= MANY * self.done:
            self._begun = time.monotonic(), self.done  # the first of many steps compiles and fills caches
        if what is not None:
            self.what = what
        if self._bar is not None:
            self._bar.set_description(self.what, refresh=False)
            self._bar.update(steps)
        elif _first_process() and self._pace is not None and self._pace.due():
            print(", ".join(map(str, self._open)), file=sys.stderr, flush=True)

    def __str__(self) -> str:
        counted = f"{self.what} {self.done:,}" + (f"/{self.total:,}" if self.total else "")
        since, before = self._begun
        if not self.total or not before < self.done < self.total:
            return counted
        left = (time.monotonic() - since) * (self.total - self.done) / (self.done - before)
        return f"{counted} ({duration(left)} left)"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._open.remove(self)


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and show how many are done, out of `total` or the length of `items` if it has one."""
    length = len(items) if total is None and isinstance(items, Sized) else total
    with Progress(what, length) as steps:
        for item in items:
            yield item
            steps.update()


def duration(seconds: float) -> str:
    """Write seconds in words.

    >>> duration(8), duration(150), duration(9000)
    ('8 s', '2.5 min', '2.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _first_process() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
