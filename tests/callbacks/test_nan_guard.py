"""A loss or gradient that is not finite stops the run before it reaches the weights."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from slms.callbacks import NanGuard


class Line(L.LightningModule):
    """y = w·x; the batch holds x, the loss is f(w·x)."""

    def __init__(self, f):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(()))
        self.f = f
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(float(self.w.detach()))
        return self.f(self.w * batch.sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(f, data, tmp_path, **options):
    model = Line(f)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[NanGuard()],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    try:
        trainer.fit(model, DataLoader(torch.tensor(data), batch_size=1))
    finally:
        torch.manual_seed(0)
    return model


@pytest.mark.parametrize("bad, shown", [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_loss_that_is_not_finite(bad, shown, tmp_path):
    with pytest.raises(ValueError) as error:
        _fit(lambda y: y, [1.0, 1.0, bad, 1.0], tmp_path, enable_checkpointing=False)
    assert str(error.value).startswith(f"training loss is {shown} at step 2; it must be finite. Training stopped")
    assert "\n" not in str(error.value) and str(error.value).endswith("none was written yet")


def test_gradient_that_is_not_finite_though_the_loss_is(tmp_path):
    """√y at y = 0 is 0 with an infinite slope."""
    with pytest.raises(ValueError, match=r"gradient norm is (nan|inf) at step 1"):
        _fit(lambda y: torch.sqrt(y), [1.0, 0.0, 1.0], tmp_path, enable_checkpointing=False)


def test_weights_and_checkpoint_are_those_of_the_last_good_step(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    model, checkpoint = Line(lambda y: y), ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[NanGuard(), checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(ValueError) as error:
        trainer.fit(model, DataLoader(torch.tensor([1.0, 2.0, float("nan")]), batch_size=1))
    assert float(model.w.detach()) == pytest.approx(1 - 0.1 - 0.2)
    kept = tmp_path / "last.ckpt"
    assert f"The last good checkpoint: {kept} (with the weights that gave this value" in str(error.value)
    assert torch.load(kept, weights_only=True)["state_dict"]["w"] == model.w


def test_a_finite_run_is_left_alone(tmp_path):
    model = _fit(lambda y: y, [1.0, 2.0, 3.0], tmp_path, enable_checkpointing=False)
    assert model.seen == pytest.approx([1.0, 0.9, 0.7])


def test_a_loss_that_explodes_though_finite(tmp_path):
    """Ten times the lowest running mean is too much: 1 → .95 + .05·300 = 15.95."""
    with pytest.raises(ValueError, match=r"training loss is 300.0 at step 2; it must be below 10 times its lowest, 1"):
        _fit(lambda y: 0 * y + y.detach(), [1.0, 1.0, 300.0], tmp_path, enable_checkpointing=False)


def test_a_loss_that_begins_at_nothing_may_rise(tmp_path):
    """A dense student of itself starts at a KL of 0 or just below it; its first nats are no explosion."""
    low = [-1e-10, 1e-3, 0.01, 0.5]
    assert len(_fit(lambda y: 0 * y + y.detach(), low, tmp_path, enable_checkpointing=False).seen) == len(low)
    with pytest.raises(ValueError, match=r"it must be below 10 times its lowest, 0, or 0.1 \(nan_guard"):
        _fit(lambda y: 0 * y + y.detach(), [0.0, 30.0], tmp_path, enable_checkpointing=False)


@pytest.mark.parametrize("max_rise", [0.5, 1.0])
def test_a_rise_that_forbids_training_is_refused(max_rise):
    with pytest.raises(ValueError, match="max_rise is"):
        NanGuard(max_rise=max_rise)
