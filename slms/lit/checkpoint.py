"""Finding and checking a checkpoint to resume from."""

import pickle
import zipfile
from pathlib import Path

import torch


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`: a `.ckpt` file, or the last one of a run directory.

    Raises:
        ValueError: none there, or one that is truncated, damaged or holds pickled code; names the newest intact one
            beside it where there is one.
    """
    if path.is_dir():
        last = path / "checkpoints" / "last.ckpt"
        if not last.exists():
            raise ValueError(f"--ckpt_path {path}: no checkpoints/last.ckpt in this directory")
        path = last
    if not path.is_file():
        raise ValueError(f"--ckpt_path {path}: no such checkpoint")
    if (why := damage(path)) is not None:
        others = sorted(path.parent.glob("*.ckpt"), key=lambda other: -other.stat().st_mtime)
        intact = next((other for other in others if other != path and damage(other) is None), None)
        raise ValueError(f"--ckpt_path {path}: {why}" + (f"; {intact} is intact" if intact else ""))
    return path


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None: checks every stored CRC, then loads tensors and plain types only."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                return f"damaged checkpoint ({bad} fails its checksum)"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return "refused: it holds pickled code, and only tensors and plain types are read"
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, KeyError):
        return "truncated or damaged checkpoint"
    return None
