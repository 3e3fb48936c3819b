"""Every place where SLMS uses undocumented parts of Lightning: look here first when a new release breaks something.

StepCheckpoint       ModelCheckpoint's interval, state key, and how it saves, names and removes files
FinishingLoop        the fit loop: when it is skipped, when an epoch is over, where the text goes on
FullyShardStrategy   ModelParallelStrategy's number of processes and whether it saves shards
move_root            the trainer's directory, once it is settled

An override names only the arguments that it uses and hands on the others as they came.
"""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.strategies import ModelParallelStrategy

from slms.files import PART
from slms.lit.trainer_options import run_directory, undeclared


class StepCheckpoint(ModelCheckpoint):
    """Writes checkpoints to the run directory; `last.ckpt` is always the newest and, at the end, the run's last step.

    Delays a checkpoint due on an epoch's last step until after that epoch's validation, so that a resumed run does not
    skip it. A resumed run removes what a kill kept its predecessor from removing.
    """

    _held = False
    _ended_at: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._written: set[str] = set()  # the files of this run's checkpoints, as far as they were not removed

    @property
    def state_key(self) -> str:
        """The key without how often to save, so that a resumed run may change that and keep its scores and paths."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def state_dict(self) -> dict[str, Any]:
        """The state with the files that were written and not removed."""
        return super().state_dict() | {"written": sorted(self._written)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the files that still exist: the run may have moved, or continue in another directory."""
        state = _moved(state_dict, str(self.dirpath))
        self._written = set(state["written"])
        super().load_state_dict(state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove each file that has left the best `save_top_k`: a kill came between a checkpoint and the removal."""
        super().on_train_start(trainer, pl_module)
        kept = {self.best_model_path, self.last_model_path, *self.best_k_models}
        for path in sorted(self._written - kept) if self.save_top_k > 0 else []:
            if self._should_remove_checkpoint(trainer, path, ""):
                self._remove_checkpoint(trainer, path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send checkpoints to the run directory, whichever loggers the run has."""
        self.dirpath = self.dirpath or str(run_directory(trainer) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is the step's turn, but hold an epoch's last step back."""
        every = self._every_n_train_steps
        if trainer.is_last_batch and trainer.num_training_batches > 1:
            self._held = every > 0 and trainer.global_step % every == 0
            return
        self._every_n_train_steps = 1 if self._held else every
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._every_n_train_steps, self._held = every, False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt` as training ends, unless `save_end` has."""
        self.save_end(trainer)

    def save_end(self, trainer: Trainer) -> None:
        """Write `last.ckpt` as training ends: every process must call it. The second call does nothing."""
        if not self.save_last or undeclared(trainer).fast_dev_run or self._ended_at == trainer.global_step:
            return
        self._ended_at = trainer.global_step
        self.save_last, kind = True, self.save_last  # a link would lead to an earlier step
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self.save_last = kind

    def _save_checkpoint(self, trainer: Trainer, filepath: str, *args: Any, **kwargs: Any) -> None:
        """Save, and know the file as this run's."""
        self._written.add(filepath)
        super()._save_checkpoint(trainer, filepath, *args, **kwargs)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str, *args: Any, **kwargs: Any) -> None:
        """Remove, and forget the file."""
        super()._remove_checkpoint(trainer, filepath, *args, **kwargs)
        self._written.discard(filepath)

    def _save_last_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Replace `last.ckpt`; Lightning would write `last-v1.ckpt` beside a `last.ckpt` that it does not know."""
        self._enable_version_counter, counter = False, self._enable_version_counter
        super()._save_last_checkpoint(*args, **kwargs)
        self._enable_version_counter = counter


def _moved(state: dict[str, Any], directory: str) -> dict[str, Any]:
    """The state of a ModelCheckpoint whose files now lie in `directory`, without the files that are not there."""
    old = str(state.get("dirpath"))

    def find(path: str) -> str:
        inside = path and Path(path).is_relative_to(old)
        new = str(Path(directory, Path(path).relative_to(old))) if inside else path
        return new if new and Path(new).exists() else ""

    written = [new for new in map(find, state.get("written", [])) if new]
    state = state | {
        "dirpath": directory,
        "written": written,
        "last_model_path": find(state.get("last_model_path", "")),
    }
    kept = {find(path): score for path, score in state["best_k_models"].items() if find(path)}
    if len(kept) == len(state["best_k_models"]):
        paths = {key: find(state[key]) for key in ("best_model_path", "kth_best_model_path")}
        return state | paths | {"best_k_models": kept}
    # fewer than k are left, so that the next one is kept in any case
    best = {"best_model_path": "", "best_model_score": None, "kth_best_model_path": ""}
    return state | best | {"best_k_models": kept}


class FinishingLoop(_FitLoop):
    """Continues after an epoch's end where the text stopped, and finishes a run that has no step left.

    A run may be stopped between its last checkpoint and its results; `on_train_end` writes them when you resume it.
    """

    @property
    def skip(self) -> bool:
        """Skip as Lightning does, but only if training begins anew or has no batches."""
        return super().skip and not (self.trainer.ckpt_path and self.max_batches)

    @_FitLoop.restarting.setter
    def restarting(self, restarting: bool) -> None:
        """Set whether an epoch was left midway. One that was trained to its last batch is over, also under `max_steps`.

        Lightning trains no step of the next one there (its issue 19617).
        """
        epoch = self.epoch_progress.current
        assert isinstance(epoch, _ProcessedTracker)
        unfinished = epoch.ready != epoch.processed or epoch.started != epoch.processed
        cut = self._iteration_based_training() and not self.epoch_loop.batch_progress.is_last_batch
        whole: Any = _Loop.restarting  # a property, which type checkers take for its getter
        whole.fset(self, restarting and (unfinished or cut))

    def _load_combined_loader_states(self, *args: Any, **kwargs: Any) -> None:
        """Load the text's position also after a finished epoch, where Lightning would start it anew, unchecked."""
        if self._combined_loader is not None and self._combined_loader_states_to_load:
            self._combined_loader._load_state_dicts(self._combined_loader_states_to_load)
            self._combined_loader_states_to_load = []  # release memory

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Replace the trainer's own loop before it has run."""
        theirs = trainer.fit_loop
        trainer.fit_loop = cls(trainer, theirs.min_epochs, theirs.max_epochs)
        trainer.fit_loop.epoch_loop = theirs.epoch_loop


class FullyShardStrategy(ModelParallelStrategy):
    """Runs FSDP2 over all processes, with data parallelism and no tensor parallelism."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, **kwargs)

    def setup_environment(self, *args: Any, **kwargs: Any) -> None:
        """Shard over every process of every node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment(*args, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write the shards beside the target, then swap them in, so that a kill leaves the previous checkpoint."""
        if not self._save_distributed_checkpoint:
            return super().save_checkpoint(checkpoint, filepath, *args, **kwargs)
        target = Path(self.broadcast(filepath))
        part, old = target.with_name(f"{PART}new-{target.name}"), target.with_name(f"{PART}old-{target.name}")
        super().save_checkpoint(checkpoint, part, *args, **kwargs)
        self.barrier()
        if self.is_global_zero:
            if target.exists():
                target.rename(old)
            part.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        self.barrier()


def move_root(trainer: Trainer, directory: str) -> None:
    """Make the trainer write beneath `directory` from now on."""
    trainer._default_root_dir = directory  # type: ignore[attr-defined]  # Lightning sets it undeclared
