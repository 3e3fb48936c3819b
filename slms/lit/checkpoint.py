"""Writes checkpoints whole or not at all, and checks them before a run resumes from them.

A checkpoint is one file or, if sharded, a directory with a file for each process (torch.distributed.checkpoint).
"""

import io
import logging
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from slms.files import replacing

logger = logging.getLogger(__name__)

CONFIG_KEY = "config.yaml"  # where a checkpoint keeps its run's configuration, as text
CONTROL_KEY = "control"  # where it keeps how the control was made that it trains
SHARDED = "meta.pt"  # the file that Lightning puts beside the shards


def check_checkpoint(options: Namespace) -> None:
    """Refuse options of `checkpoint` that lead out of the run directory.

    Raises:
        ValueError: an option leads out; the message names it, its value and the rule.
    """
    if options.dirpath is not None:
        raise ValueError(
            f"checkpoint.dirpath is {str(options.dirpath)!r}; it must be null: checkpoints go to the run directory, "
            "which --output_dir and --name choose"
        )
    if any(part.startswith((".", "/")) for part in Path(options.filename or "").parts):
        raise ValueError(f"checkpoint.filename is {options.filename!r}; it must stay in the run's checkpoints/")


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs and renames: a kill or a full disk leaves the previous checkpoint as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; raises OSError if it does not fit."""
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's zip writer hides why a write failed
            raise OSError(f"checkpoint {path} could not be written ({error.__context__ or error})") from error


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint at `path`: a `.ckpt` file, a directory of shards, or a run's newest intact checkpoint.

    Raises:
        ValueError: there is none, or it is not intact: truncated, damaged, with pickled code, or of no training run.
            The message names the newest intact checkpoint beside it, if there is one.
    """
    if path.is_dir() and path.suffix != ".ckpt":
        if (newest := newest_checkpoint(path)) is None:
            raise ValueError(f"--ckpt_path {path}: no checkpoints/last.ckpt in this directory; start the run again")
        return newest
    if not path.exists():
        raise ValueError(f"--ckpt_path {path}: no such checkpoint")
    if (why := _fault(path)) is not None:
        beside = [other for other in path.parent.glob("[!.]*.ckpt") if other != path]
        intact = next((other for other in _newest_first(beside) if _fault(other) is None), None)
        raise ValueError(f"--ckpt_path {path}: {why}" + (f"; {intact} is intact" if intact else ""))
    return path


def checkpoints_of(run: Path) -> list[Path]:
    """All checkpoints below `run`/checkpoints, intact or not, without those that are being written."""
    place = run / "checkpoints"
    return [path for path in place.rglob("*.ckpt") if not any(n.startswith(".") for n in path.relative_to(place).parts)]


def newest_checkpoint(run: Path) -> Path | None:
    """Find the intact checkpoint with the most steps below `run`/checkpoints, whatever its name; None if none exists.

    It warns of each damaged checkpoint that it passes over, in one line.

    Raises:
        ValueError: checkpoints exist, but all are damaged.
    """
    bad: list[str] = []
    for path in _newest_first(checkpoints_of(run)):
        if (why := _fault(path)) is None:
            for line in bad:
                logger.warning("%s; left aside for %s", line, path)
            return path
        bad.append(f"{path}: {why}")
    if bad:
        raise ValueError(f"--ckpt_path {bad[0]}")
    return None


def _newest_first(paths: list[Path]) -> list[Path]:
    """Sort by step, then by time of writing; checkpoints whose step cannot be read come first."""

    def age(path: Path) -> tuple[float, float, bool]:
        try:
            step: float = step_of(path)
        except Exception:  # whatever a damaged file makes of torch's readers; it is named later
            step = math.inf
        return step, path.stat().st_mtime, path.name == "last.ckpt"

    return sorted((path for path in paths if path.exists()), key=age, reverse=True)


def step_of(path: Path) -> int:
    """The number of optimizer steps before a checkpoint, which :func:`find_checkpoint` must have passed."""
    return int(_content(path)["global_step"])


def config_in(path: Path) -> dict[str, Any] | None:
    """The resolved configuration that an intact checkpoint was written under; None if it records none."""
    text = kept_in(path, CONFIG_KEY)
    return None if text is None else yaml.safe_load(text)


def kept_in(path: Path, key: str) -> Any:
    """What an intact checkpoint keeps under `key` beside its weights; None if nothing."""
    return _content(path).get(key)


def _content(path: Path) -> dict[str, Any]:
    file = path / SHARDED if path.is_dir() else path
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _fault(path: Path) -> str | None:
    """Why a run cannot be resumed from `path`, or None."""
    if (why := damage(path)) is not None:
        return why
    try:
        step_of(path)
    except (KeyError, TypeError, ValueError, IndexError):
        return "not the checkpoint of a training run (it has no global_step)"
    return None


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None. Checks every stored CRC, then loads tensors and plain types only."""
    try:
        return _damage_of_shards(path) if path.is_dir() else _damage_of_file(path)
    except pickle.UnpicklingError:
        return "refused: it holds pickled code, and only tensors and plain types are read"
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, KeyError, ValueError, AttributeError, IndexError):
        return "truncated or damaged checkpoint"


def _damage_of_file(file: Path | io.BytesIO) -> str | None:
    with zipfile.ZipFile(file) as archive:
        if (bad := archive.testzip()) is not None:
            return f"damaged checkpoint ({bad} fails its checksum)"
    if isinstance(file, io.BytesIO):
        file.seek(0)
    torch.load(file, map_location="cpu", weights_only=True, mmap=isinstance(file, Path))
    return None


def _damage_of_shards(directory: Path) -> str | None:
    """Check the metadata, and each entry of each shard as a file of its own: torch reads some of them unchecked."""
    if (why := _damage_of_file(directory / SHARDED)) is not None:
        return why
    with (directory / ".metadata").open("rb") as file:
        try:
            metadata = _MetadataUnpickler(file).load()
        except pickle.UnpicklingError as error:
            raise error if isinstance(error, _PickledCode) else EOFError from None
    for entry in metadata.storage_data.values():
        with (directory / entry.relative_path).open("rb") as file:
            file.seek(entry.offset)
            if (why := _damage_of_file(io.BytesIO(file.read(entry.length)))) is not None:
                return why
    return None


class _PickledCode(pickle.UnpicklingError):
    pass


class _MetadataUnpickler(pickle.Unpickler):
    """Builds what the metadata of torch.distributed.checkpoint consists of, and nothing else."""

    allowed = {  # noqa: RUF012  a constant
        "torch.distributed.checkpoint.metadata": "Metadata MetadataIndex TensorStorageMetadata TensorProperties "
        "ChunkStorageMetadata BytesStorageMetadata StorageMeta _MEM_FORMAT_ENCODING",
        "torch.distributed.checkpoint.filesystem": "_StorageInfo",
        "torch.serialization": "_get_layout",
        "torch": "Size",
        "pathlib": "PosixPath WindowsPath",
    }

    def find_class(self, module: str, name: str) -> Any:
        """The class; _PickledCode for any other."""
        if name in self.allowed.get(module, "").split() or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise _PickledCode(f"{module}.{name}")
