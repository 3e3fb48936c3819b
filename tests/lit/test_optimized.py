"""On a model of one number, gradients are means, and rates are those of the configuration."""

import lightning as L
import pytest
import torch

from slms.lit.optimized import OptimizedModule


class Line(OptimizedModule):
    """The loss of a batch x is w · x, so that the gradient is x."""

    base_digest = "of no base"

    def __init__(self, lr=0.1, decay=0.0, share=lambda step: 1 / (step + 1)):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(()))
        self.lr, self.decay, self.share = lr, decay, share
        self.gradients, self.rates = [], []

    def training_step(self, batch, batch_idx):
        assert self._held or self.w.grad is None  # the last step's gradients do not take memory beside activations
        return self.w * batch.mean()

    def configure_optimizers(self):
        return self.scheduled(torch.optim.AdamW([self.w], lr=self.lr, weight_decay=self.decay), self.share)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.gradients.append(float(self.w.grad))
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])


def fit(module, tmp_path, batches=(1.0, 2.0, 3.0, 10.0), ckpt=None, **options):
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **{"max_epochs": 2, "enable_checkpointing": False} | options,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.tensor(batches)), ckpt_path=ckpt, weights_only=True)
    return trainer


@pytest.mark.parametrize(("window", "expected"), [(1, [1, 2, 3, 10]), (2, [1.5, 6.5]), (3, [2, 10]), (9, [4])])
def test_a_step_has_the_mean_gradient_of_the_batches_that_it_holds(window, expected, tmp_path):
    module = Line()
    fit(module, tmp_path, accumulate_grad_batches=window)
    assert module.gradients == pytest.approx(2 * expected)


def test_a_window_cut_by_a_resume_with_another_size(tmp_path):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 2:
                trainer.save_checkpoint(tmp_path / "c.ckpt")

    fit(Line(), tmp_path, accumulate_grad_batches=3, callbacks=[Save()], max_epochs=1)
    module = Line()
    fit(module, tmp_path, accumulate_grad_batches=2, ckpt=tmp_path / "c.ckpt", max_epochs=1)
    assert module.gradients == pytest.approx([1.0])  # the step after three of four batches; this loader begins anew


def test_a_resumed_run_has_the_configured_rates_and_the_moments_of_the_checkpoint(tmp_path):
    whole = Line()
    fit(whole, tmp_path)
    fit(Line(), tmp_path, max_epochs=1).save_checkpoint(tmp_path / "c.ckpt")
    same, other = Line(), Line(lr=1e-3, decay=0.5, share=lambda step: 1 / (step + 2))
    fit(same, tmp_path, ckpt=tmp_path / "c.ckpt")
    assert same.rates == whole.rates[4:] and torch.equal(same.w, whole.w)
    trainer = fit(other, tmp_path, ckpt=tmp_path / "c.ckpt")
    assert other.rates == pytest.approx([1e-3 / (step + 2) for step in range(4, 8)])
    (group,) = trainer.optimizers[0].param_groups
    assert group["weight_decay"] == 0.5 and group["initial_lr"] == 1e-3
    assert trainer.optimizers[0].state[other.w]["step"] == 8


def test_the_state_of_another_model_is_refused_in_one_line():
    class Small(OptimizedModule):
        def __init__(self, width):
            super().__init__()
            self.layer = torch.nn.Linear(width, 2)

    with pytest.raises(ValueError, match=r"--ckpt_path: the checkpoint is of another model.*layer\.weight.*") as caught:
        Small(3).load_state_dict(Small(4).state_dict())
    assert "\n" not in str(caught.value)
