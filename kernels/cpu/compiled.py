"""Numba for this package: it compiles once per machine, and again when any source of the package has changed.

Numba keeps compiled code by the file of the outermost function alone, so after a change of another file it would run
the old inner code. So each version of the sources has its own folder in `$SLMS_CACHE/compiled`, by default under
`~/.cache/slms`; folders that no process has used for thirty days are removed when another is made. If nothing can be
written, nothing is kept, because numba's own choice, beside the sources, would run old inner code.
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

from slms.kernels.cache import cache_file

log = logging.getLogger(__name__)

settings: Any = numba.config
SOURCES = Path(__file__).parent
BESIDE = [SOURCES.parent / "router.py", SOURCES.parent / "neurons.py"]  # constants, and the loops of single rows
# Reordering sums is what lets the compiler vectorise them; NaN and infinity keep their meaning.
MATH = ("reassoc", "contract", "nsz", "arcp")
DAYS = 30  # for which code is kept after its last use
OPTIONS: dict[str, Any] = dict(nogil=True, fastmath=set(MATH), error_model="numpy")


@functools.cache
def folder() -> Path | None:
    """The folder, if any, of the code compiled from the current sources; it is below `$NUMBA_CACHE_DIR` if set."""
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
        log.warning(
            "the CPU kernels are compiled anew in every process (a minute or more); they cannot be kept: %s", error
        )
        return None
    return place


def _remove_unused(above: Path) -> None:
    """Remove the folders of versions of the sources that no process has used for DAYS."""
    for place in above.glob("[0-9a-f]" * 16):
        with contextlib.suppress(FileNotFoundError):  # another process removes them too
            if place.stat().st_mtime < time.time() - DAYS * 86400:
                shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _kept() -> Iterator[bool]:
    """A context in which declared functions are kept in `folder`; yields whether they are."""
    place, before = folder(), settings.CACHE_DIR
    settings.CACHE_DIR = str(place or before)
    try:
        yield place is not None
    finally:
        settings.CACHE_DIR = before


class _Announcement(event.Listener):
    """Says once per process that something is being compiled, because it takes seconds."""

    def __init__(self) -> None:
        self.functions: set[object] = set()

    def on_start(self, event: event.Event) -> None:
        if event.data["dispatcher"] in self.functions:
            self.functions.clear()
            if folder() is not None:  # else that was said
                log.info("compiling the CPU kernels, once (a minute or more), kept in %s", folder())

    def on_end(self, event: event.Event) -> None:
        """Do nothing."""


_announcement = _Announcement()
event.register("numba:compile", _announcement)


def njit(function: Callable, **changes: Any) -> Any:
    """`numba.njit` with this package's options, which `changes` may replace."""
    with _kept() as kept:
        compiled = numba.njit(cache=kept, **{**OPTIONS, **changes})(function)
    _announcement.functions.add(compiled)
    return compiled


def c_function(function: Callable, signature: str) -> Any:
    """`numba.cfunc`, whose code is kept in the same way."""
    with _kept() as kept:
        return numba.cfunc(signature, cache=kept)(function)
