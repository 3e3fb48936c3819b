"""Numba for this package: compiled once a machine, and again when any source of the package has changed.

Numba keeps compiled code by the file of the outermost function alone, and after an upgrade of another file would run it
on with its old insides. So the code of each version of the sources has its own folder in `$SLMS_CACHE/compiled`, by
default under `~/.cache/slms`. Where nothing can be written there, numba finds a place of its own.
"""

import contextlib
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba.core import event

from kernels.costs import cache_file

log = logging.getLogger(__name__)

settings: Any = numba.config
SOURCES = Path(__file__).parent
BESIDE = [SOURCES.parent / "router.py", SOURCES.parent / "neurons.py"]  # constants, and the loops of single rows
# Reordering sums is what lets the compiler vectorise them; NaN and infinity keep their meaning.
MATH = ("reassoc", "contract", "nsz", "arcp")
OPTIONS: dict[str, Any] = dict(nogil=True, fastmath=set(MATH), error_model="numpy")


@functools.cache
def folder() -> Path:
    """Where the code compiled from the sources as they are is kept; below `$NUMBA_CACHE_DIR` where that is set."""
    content = b"".join(path.read_bytes() for path in [*sorted(SOURCES.glob("*.py")), *BESIDE])
    place = Path(settings.CACHE_DIR or cache_file().parent / "compiled")
    return place / hashlib.sha256(content).hexdigest()[:16]


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """What is declared inside is kept in `folder`."""
    place, before = folder(), settings.CACHE_DIR
    settings.CACHE_DIR = str(place)
    try:
        yield
    finally:
        settings.CACHE_DIR = before


class _Announcement(event.Listener):
    """Says once in a process that something is being compiled: it takes seconds."""

    def __init__(self) -> None:
        self.functions: set[object] = set()

    def on_start(self, event: event.Event) -> None:
        if event.data["dispatcher"] in self.functions:
            self.functions.clear()
            log.info("compiling the CPU kernels, once (about 10 s), kept in %s", folder())

    def on_end(self, event: event.Event) -> None:
        """Nothing."""


_announcement = _Announcement()
event.register("numba:compile", _announcement)


def njit(function: Callable, **changes: Any) -> Any:
    """`numba.njit` with this package's options, which `changes` may replace."""
    with _kept():
        compiled = numba.njit(cache=True, **{**OPTIONS, **changes})(function)
    _announcement.functions.add(compiled)
    return compiled


def c_function(function: Callable, signature: str) -> Any:
    """`numba.cfunc`, kept likewise."""
    with _kept():
        return numba.cfunc(signature, cache=True)(function)
