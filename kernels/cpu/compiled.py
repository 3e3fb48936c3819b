"""Numba for this package: compiled once a machine, and again when any source of the package has changed.

Numba keeps compiled code by the file of the outermost function alone, and after an upgrade of another file would run it
on with its old insides. So the code of each version of the sources has its own folder in `$SLMS_CACHE/compiled`, by
default under `~/.cache/slms`; those that no process has used for thirty days are removed when another is made. Where
nothing can be written, nothing is kept: numba's own choice, beside the sources, would run old insides.
"""

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba.core import event

from kernels.cache import cache_file

log = logging.getLogger(__name__)

settings: Any = numba.config
SOURCES = Path(__file__).parent
BESIDE = [SOURCES.parent / "router.py", SOURCES.parent / "neurons.py"]  # constants, and the loops of single rows
# Reordering sums is what lets the compiler vectorise them; NaN and infinity keep their meaning.
MATH = ("reassoc", "contract", "nsz", "arcp")
DAYS = 30  # that code is kept after its last use
OPTIONS: dict[str, Any] = dict(nogil=True, fastmath=set(MATH), error_model="numpy")


@functools.cache
def folder() -> Path | None:
    """Where the code compiled from the sources as they are is kept, if anywhere; below `$NUMBA_CACHE_DIR` if set."""
    content = b"".join(path.read_bytes() for path in [*sorted(SOURCES.glob("*.py")), *BESIDE])
    try:
        above = Path(settings.CACHE_DIR or cache_file().parent / "compiled")
        place = above / hashlib.sha256(content).hexdigest()[:16]
        if not place.exists():
            _remove_unused(above)
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
        os.utime(place)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        log.warning("the CPU kernels are compiled anew in every process (about 10 s); they cannot be kept: %s", error)
        return None
    return place


def _remove_unused(above: Path) -> None:
    """Removes the folders of versions of the sources that no process has used for DAYS."""
    for place in above.glob("[0-9a-f]" * 16):
        with contextlib.suppress(FileNotFoundError):  # another process removes them too
            if place.stat().st_mtime < time.time() - DAYS * 86400:
                shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _kept() -> Iterator[bool]:
    """What is declared inside is kept in `folder`, if True."""
    place, before = folder(), settings.CACHE_DIR
    settings.CACHE_DIR = str(place or before)
    try:
        yield place is not None
    finally:
        settings.CACHE_DIR = before


class _Announcement(event.Listener):
    """Says once in a process that something is being compiled: it takes seconds."""

    def __init__(self) -> None:
        self.functions: set[object] = set()

    def on_start(self, event: event.Event) -> None:
        if event.data["dispatcher"] in self.functions:
            self.functions.clear()
            if folder() is not None:  # else that was said
                log.info("compiling the CPU kernels, once (about 10 s), kept in %s", folder())

    def on_end(self, event: event.Event) -> None:
        """Nothing."""


_announcement = _Announcement()
event.register("numba:compile", _announcement)


def njit(function: Callable, **changes: Any) -> Any:
    """`numba.njit` with this package's options, which `changes` may replace."""
    with _kept() as kept:
        compiled = numba.njit(cache=kept, **{**OPTIONS, **changes})(function)
    _announcement.functions.add(compiled)
    return compiled


def c_function(function: Callable, signature: str) -> Any:
    """`numba.cfunc`, kept likewise."""
    with _kept() as kept:
        return numba.cfunc(signature, cache=kept)(function)
