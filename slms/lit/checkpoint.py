"""Checkpoints: written whole or not at all, and checked before a run resumes from them.

A checkpoint is one file, or, sharded, a directory with a file for each process (torch.distributed.checkpoint).
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from slms.files import replacing
from slms.lit.trainer_options import run_directory

SHARDED = "meta.pt"  # what Lightning puts beside the shards


class StepCheckpoint(ModelCheckpoint):
    """Lightning's, but what falls on an epoch's last step is written one step later, behind the epoch's validation.

    A run that is resumed from between the two would leave that validation out. The last step of all has results.
    """

    _held = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checkpoints go to the run directory, whichever loggers the run has."""
        self.dirpath = self.dirpath or str(run_directory(trainer) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where a step's turn has come; hold it back at an epoch's last."""
        every = self._every_n_train_steps
        if trainer.is_last_batch and trainer.num_training_batches > 1:
            self._held = every > 0 and trainer.global_step % every == 0
            return
        self._every_n_train_steps = 1 if self._held else every
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._every_n_train_steps, self._held = every, False


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs and renames: a kill or a full disk leaves the previous checkpoint as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; OSError where it does not fit."""
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's zip writer hides why a write failed
            raise OSError(f"checkpoint {path} could not be written ({error.__context__ or error})") from error


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`: a `.ckpt` file or directory of shards, or the last one of a run directory.

    Raises:
        ValueError: none there, or one that is truncated, damaged or holds pickled code; names the newest intact one
            beside it where there is one.
    """
    if path.is_dir() and path.suffix != ".ckpt":
        last = path / "checkpoints" / "last.ckpt"
        others = sorted(last.parent.glob("[!.]*.ckpt"), key=lambda other: other.stat().st_mtime)
        if not last.exists() and not others:
            raise ValueError(f"--ckpt_path {path}: no checkpoints/last.ckpt in this directory; start the run again")
        path = last if last.exists() else others[-1]  # a kill may fall between a step's checkpoint and `last`
    if not path.exists():
        raise ValueError(f"--ckpt_path {path}: no such checkpoint")
    if (why := damage(path)) is not None:
        others = sorted(path.parent.glob("[!.]*.ckpt"), key=lambda other: -other.stat().st_mtime)
        intact = next((other for other in others if other != path and damage(other) is None), None)
        raise ValueError(f"--ckpt_path {path}: {why}" + (f"; {intact} is intact" if intact else ""))
    return path


def step_of(path: Path) -> int:
    """Optimizer steps behind a checkpoint that :func:`find_checkpoint` has passed."""
    file = path / SHARDED if path.is_dir() else path
    return int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None: checks every stored CRC, then loads tensors and plain types only."""
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
