import lightning
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
