import shutil

import lightning
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from slms.lit.checkpoint import step_of
from slms.lit.lightning_internals import StepCheckpoint


def test_what_falls_on_an_epoch_s_last_step_is_written_one_step_later(tmp_path):
    """A run resumed from between the two would leave the validation out."""
    seen, written = [], lambda: sorted(step_of(path) for path in tmp_path.glob("step*.ckpt"))

    class Watch(lightning.Callback):
        def on_validation_start(self, trainer, module):
            seen.append((trainer.global_step, written()))

    def fit(epochs, ckpt_path=None):
        checkpoint = StepCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1, save_last=True)
        lightning.Trainer(
            max_epochs=epochs,
            limit_train_batches=4,
            limit_val_batches=1,
            num_sanity_val_steps=0,
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[checkpoint, Watch()],
        ).fit(BoringModel(), ckpt_path=ckpt_path)

    fit(2)
    assert seen == [(4, [2]), (8, [2, 5, 6])]
    assert written() == [2, 5, 6] and step_of(tmp_path / "last.ckpt") == 8  # a finished run's last is its end
    fit(3, ckpt_path=next(tmp_path.glob("step=6*.ckpt")))
    assert seen[2:] == [(8, [2, 5, 6]), (12, [2, 5, 6, 9, 10])]
    assert step_of(tmp_path / "last.ckpt") == 12 and not list(tmp_path.glob("last-*"))


def test_the_state_of_saving_moves_with_the_directory(tmp_path):
    """What is still there is known by its new place; what is not leaves its rank to the next one."""
    for name in ("a.ckpt", "last.ckpt"):
        (tmp_path / name).touch()
    state = StepCheckpoint(monitor="val/loss", save_top_k=2).state_dict()
    state |= {
        "dirpath": "/old",
        "best_model_path": "/old/a.ckpt",
        "last_model_path": "/old/last.ckpt",
        "kth_best_model_path": "/old/a.ckpt",
    }
    for scores, best in (({"a.ckpt": 1.0}, "a.ckpt"), ({"a.ckpt": 1.0, "gone.ckpt": 0.5}, None)):
        moved = StepCheckpoint(tmp_path, monitor="val/loss", save_top_k=2)
        moved.load_state_dict(state | {"best_k_models": {f"/old/{k}": torch.tensor(v) for k, v in scores.items()}})
        assert moved.best_k_models == {str(tmp_path / "a.ckpt"): torch.tensor(1.0)}
        assert moved.best_model_path == ("" if best is None else str(tmp_path / best))
        assert moved.last_model_path == str(tmp_path / "last.ckpt")


@pytest.mark.parametrize("monitor", [None, "loss"])
def test_a_resumed_run_removes_what_a_kill_left(tmp_path, monkeypatch, monitor):
    """The kill comes between the fourth step's checkpoint and the removal of the second step's."""

    def fit(ckpt_path=None, **more):
        checkpoint = StepCheckpoint(
            tmp_path / "run", filename="{step}", every_n_train_steps=2, save_top_k=1, save_last=True, monitor=monitor
        )
        trainer = lightning.Trainer(
            **{"max_steps": 8, "limit_train_batches": 20} | more,
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[checkpoint],
        )
        trainer.fit(Falling(), ckpt_path=ckpt_path)

    class Falling(BoringModel):
        def training_step(self, batch, batch_idx):
            self.log("loss", -float(self.global_step))
            return super().training_step(batch, batch_idx)

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(StepCheckpoint, "_remove_checkpoint", kill)
        patched.setattr(StepCheckpoint, "save_end", lambda *args: None)
        fit()
    run, mine = tmp_path / "run", tmp_path / "run" / "step=99.ckpt"
    assert sorted(path.name for path in run.iterdir()) == ["last.ckpt", "step=2.ckpt", "step=4.ckpt"]
    mine.touch()  # a user's own
    (run / "step=4.ckpt").rename(tmp_path / "elsewhere.ckpt")
    shutil.copy(tmp_path / "elsewhere.ckpt", run / "step=4.ckpt")
    fit(tmp_path / "elsewhere.ckpt")
    assert sorted(path.name for path in run.iterdir()) == ["last.ckpt", "step=8.ckpt", "step=99.ckpt"]
