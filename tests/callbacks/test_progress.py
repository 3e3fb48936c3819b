"""A run prints lines, not a bar, if its output goes to a file."""

import lightning as L
import torch
from torch.utils.data import DataLoader

from slms.callbacks import Progress
from slms.progress import Pace


class Slope(L.LightningModule):
    """One weight; every step logs its loss."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        loss = (self.w * batch).square().sum()
        self.log("train/loss/lm", loss.detach())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.w.detach())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def said(tmp_path, capsys):
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[Progress()],
        enable_model_summary=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        num_sanity_val_steps=1,
        log_every_n_steps=1,
    )
    data = DataLoader(torch.ones(5), batch_size=1)
    trainer.fit(Slope(), data, data)
    return [line for line in capsys.readouterr().out.splitlines() if "step" in line or "validating" in line]


def test_a_line_now_and_then_and_one_after_the_validation(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Pace, "due", lambda self: True)
    lines = said(tmp_path, capsys)
    assert [line.split("  ")[1] for line in lines[:4]] == [f"step {i}/5" for i in range(2, 6)], (
        "the first is no measure"
    )
    assert all("train 0." in line or "train 1." in line for line in lines[:4]) and "left" in lines[0]
    assert lines[4:9] == [f"validating: batch {i}/5" for i in range(1, 6)]
    assert "val nats" in lines[9] and len(lines) == 10


def test_a_short_run_says_what_its_validation_found_and_no_more(tmp_path, capsys):
    (line,) = said(tmp_path, capsys)
    assert line.startswith("epoch 1/1  step 5/5") and "val nats" in line
