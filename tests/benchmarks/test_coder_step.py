"""The benchmark's steps train, and its table prints."""

import sys

import torch

from benchmarks import coder_step
from slms.sae.config import CoderConfig


def test_both_steps_lower_the_error():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    for dense in (False, True):
        torch.manual_seed(0)
        step = coder_step.our_step(8, CoderConfig(kind="topk", d_sae=32, k=4), dense)
        (coder,) = {cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, torch.nn.Module)}
        before = (coder.reconstruct(x) - x).square().mean()
        for _ in range(20):
            step(x)
        assert (coder.reconstruct(x) - x).square().mean() < before


def test_table(capsys, monkeypatch):
    flags = ["--d=8", "--latents=32", "--k=4", "--batch=16", "--rounds=2"]
    monkeypatch.setattr(sys, "argv", ["coder_step", *flags])
    coder_step.main()
    printed = capsys.readouterr().out
    assert "ours" in printed and "dense" in printed and "× ours" in printed
