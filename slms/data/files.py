"""Where caches live, and writes that are whole or absent."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def cache_dir() -> Path:
    """`$SLMS_CACHE`, else `$XDG_CACHE_HOME/slms`, else `~/.cache/slms`."""
    if "SLMS_CACHE" in os.environ:
        return Path(os.environ["SLMS_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "slms"


@contextmanager
def replacing(path: Path):
    """Yield a temporary path beside `path`; on success it takes `path`'s place, on failure nothing changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays to one uncompressed `.npz` file atomically."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
