"""`--kernels.calibrate` times nothing unless asked; then both directions at the run's tokens, with a line for each."""

from types import SimpleNamespace

import pytest

import slms.callbacks.kernels as subject
from slms.callbacks import CALLBACKS


def fit(calibrate, monkeypatch, zero=True):
    calls, barriers = [], []
    monkeypatch.setattr(subject, "calibrate_kernels", lambda *given: calls.append(given) or [f"line {given[3]}"])
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=4, block_size=32),
        precision="bf16-mixed",
        is_global_zero=zero,
        strategy=SimpleNamespace(barrier=lambda: barriers.append(1)),
    )
    CALLBACKS["kernels"](calibrate=calibrate).on_fit_start(trainer, "model")
    return calls, barriers


def test_off_by_default(monkeypatch):
    assert fit(False, monkeypatch) == ([], [])
    assert not CALLBACKS["kernels"]().calibrate


def test_on(monkeypatch, capsys):
    calls, barriers = fit(True, monkeypatch)
    assert [(c[0], c[1], str(c[2]), c[3]) for c in calls] == [
        ("model", (128,), "torch.bfloat16", training) for training in (True, False)
    ]
    assert barriers == [1] and capsys.readouterr().out.splitlines() == ["line True", "line False"]


def test_one_rank_measures_and_all_wait(monkeypatch):
    assert fit(True, monkeypatch, zero=False) == ([], [1])


@pytest.mark.parametrize(("precision", "dtype"), [("16-mixed", "float16"), ("64-true", "float64"), ("32", "float32")])
def test_types(precision, dtype):
    assert str(subject.compute_dtype(precision)) == f"torch.{dtype}"
