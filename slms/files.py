"""The packaged configs, the cache directory, writes that are whole or absent, and locks on directories.

A crash or a full disk never costs an earlier result.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

CONFIGS = Path(__file__).with_name("configs")
"""The configs and probe tasks that come with SLMS; in a checkout, a link to the directory at its top."""
PART = ".part-"  # how the names of unfinished files begin


def cache_dir() -> Path:
    """`$SLMS_CACHE`, else `$XDG_CACHE_HOME/slms`, else `~/.cache/slms`."""
    if "SLMS_CACHE" in os.environ:
        return Path(os.environ["SLMS_CACHE"])
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "slms"


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, sync it and move it to `path` in one step.

    A reader of `path` sees the old content or the new, never a part. On any error (a full disk, Ctrl-C), this removes
    the temporary file, leaves the earlier file intact and raises the error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{PART}{path.name}.", suffix=path.suffix)
    temporary = Path(name)
    try:
        yield temporary
        os.fsync(handle)
        make_readable(temporary)  # mkstemp makes files private
        os.replace(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def make_readable(path: Path) -> None:
    """Give a file or directory the mode of the umask, so that a result is as readable as any other file."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


@contextmanager
def sole_owner(directory: Path) -> Iterator[Path]:
    """Lock `directory`, which must exist, for this process; yield the lock file.

    The lock ends with the process, however that ends. Raises:
        ValueError: another process holds the lock.
    """
    file = directory / ".lock"
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{directory}: another process is writing this run; wait for it or stop it") from None
    try:
        yield file
    finally:
        lock.release()


@contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """Yield a new directory inside `directory` (created if missing) and delete it afterwards."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=PART) as place:
        yield Path(place)


@contextmanager
def make_new(target: Path | str) -> Iterator[Path]:
    """Yield an empty directory to fill; on success, move it to `target`, which must not exist, in one step.

    On any error nothing is left behind, neither `target` nor its missing parents.

    Raises:
        ValueError: `target` exists, or cannot, since a file is in its path.
    """
    target = Path(target).expanduser().absolute()
    if os.path.lexists(target):
        raise ValueError(f"--out {target} exists; name a new one")
    nearest = next(parent for parent in target.parents if os.path.lexists(parent))
    if not nearest.is_dir():
        raise ValueError(f"--out {target}: {nearest} is no directory")
    with scratch(nearest) as place:
        new = place / target.name
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            make_readable(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(new, target)


def remove_unfinished(directory: Path) -> None:
    """Remove the half-written files that a killed process left below `directory`; only its owner may call this."""
    for unfinished in list(directory.rglob(f"{PART}*")):
        if unfinished.is_dir() and not unfinished.is_symlink():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink(missing_ok=True)


def write_atomic(path: Path | str, content: bytes | str) -> Path:
    """Write `content` to `path`, whole or not at all. Text is written as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def write_npz(path: Path | str, **arrays: np.ndarray) -> None:
    """Write arrays to one uncompressed `.npz` file, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy 1 stores `allow_pickle` as an array
