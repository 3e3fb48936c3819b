"""Checkpoints: written whole or not at all, and checked before a run resumes from them.

A checkpoint is one file, or, sharded, a directory with a file for each process (torch.distributed.checkpoint).
"""

import io
import logging
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from slms.files import replacing
from slms.lit.trainer_options import run_directory

logger = logging.getLogger(__name__)

SHARDED = "meta.pt"  # what Lightning puts beside the shards


class StepCheckpoint(ModelCheckpoint):
    """Lightning's, in the run directory, with `last.ckpt` always the newest and, after the last step, the run's end.

    What falls on an epoch's last step is written one step later, behind the epoch's validation: a run that is resumed
    from between the two would leave that validation out.
    """

    _held = False
    _ended_at: int | None = None

    @property
    def state_key(self) -> str:
        """Not how often to save, which a resumed run may change: scores and paths stay what they were."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what is still there: the run may have moved, or go on in another directory."""
        super().load_state_dict(_moved(state_dict, str(self.dirpath)))

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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt` as training ends, unless that was done."""
        self.save_end(trainer)

    def save_end(self, trainer: Trainer) -> None:
        """Write `last.ckpt` as training ends: every process must call it. The second call does nothing."""
        if not self.save_last or trainer.fast_dev_run or self._ended_at == trainer.global_step:
            return
        self._ended_at = trainer.global_step
        self.save_last, kind = True, self.save_last  # a link would lead to an earlier step
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self.save_last = kind

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, torch.Tensor]) -> None:
        """Replace `last.ckpt`; Lightning would write `last-v1.ckpt` beside one that it does not know."""
        self._enable_version_counter, counter = False, self._enable_version_counter
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._enable_version_counter = counter


def _moved(state: dict[str, Any], directory: str) -> dict[str, Any]:
    """The state of a ModelCheckpoint whose files now lie in `directory`; what is not there is forgotten."""
    old = str(state.get("dirpath"))

    def find(path: str) -> str:
        inside = path and Path(path).is_relative_to(old)
        new = str(Path(directory, Path(path).relative_to(old))) if inside else path
        return new if new and Path(new).exists() else ""

    state = state | {"dirpath": directory, "last_model_path": find(state.get("last_model_path", ""))}
    kept = {find(path): score for path, score in state["best_k_models"].items() if find(path)}
    if len(kept) == len(state["best_k_models"]):
        paths = {key: find(state[key]) for key in ("best_model_path", "kth_best_model_path")}
        return state | paths | {"best_k_models": kept}
    return state | {  # fewer than k are left, so that the next one is kept in any case
        "best_k_models": kept, "best_model_path": "", "best_model_score": None, "kth_best_model_path": ""
    }  # fmt: skip


def check_checkpoint(options: Namespace) -> None:
    """Refuse options of `checkpoint` that lead out of the run directory.

    Raises:
        ValueError: naming the option, its value and the rule.
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
        """Write `checkpoint` to `path`; OSError where it does not fit."""
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's zip writer hides why a write failed
            raise OSError(f"checkpoint {path} could not be written ({error.__context__ or error})") from error


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`: a `.ckpt` file or directory of shards, or the newest intact one of a run directory.

    Raises:
        ValueError: none there, or none that is intact: truncated, damaged, with pickled code, or of no training run;
            names the newest intact one beside it where there is one.
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


def newest_checkpoint(run: Path) -> Path | None:
    """The intact checkpoint of the most steps below `run`/checkpoints, whatever its name; None where there is none.

    Damaged ones on the way to it are named in a line each.

    Raises:
        ValueError: there are some, and all are damaged.
    """
    place = run / "checkpoints"
    found = [
        path for path in place.rglob("*.ckpt") if not any(n.startswith(".") for n in path.relative_to(place).parts)
    ]
    bad = []
    for path in _newest_first(found):
        if (why := _fault(path)) is None:
            for line in bad:
                logger.warning("%s; left aside for %s", line, path)
            return path
        bad.append(f"{path}: {why}")
    if bad:
        raise ValueError(f"--ckpt_path {bad[0]}")
    return None


def _newest_first(paths: list[Path]) -> list[Path]:
    """By step, then by time of writing; those whose step cannot be read come first."""

    def age(path: Path) -> tuple[float, float, bool]:
        try:
            step: float = step_of(path)
        except Exception:  # whatever a damaged file makes of torch's readers; it is named later
            step = math.inf
        return step, path.stat().st_mtime, path.name == "last.ckpt"

    return sorted((path for path in paths if path.exists()), key=age, reverse=True)


def step_of(path: Path) -> int:
    """Optimizer steps behind a checkpoint that :func:`find_checkpoint` has passed."""
    file = path / SHARDED if path.is_dir() else path
    return int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["global_step"])


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
