"""Which backends run here: each refusal in words, and what this CPU is asked."""

import importlib.util

import pytest
import torch

from kernels import backends, costs, dispatch

SHAPE = costs.Shape(8, 12, 3, False, "float32", "cpu", False)


@pytest.fixture(autouse=True)
def fresh_choices():
    dispatch.forget_choices()
    yield
    dispatch.forget_choices()


def test_unknown_backend(make_case):
    with pytest.raises(ValueError, match="`backend` is 'cuda'; it must be one of auto, reference"):
        make_case().run("cuda")


def test_rows_without_numba(make_case, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find(name))
    with pytest.raises(ValueError, match="`backend` is 'rows'; it needs the package numba"):
        make_case().run("rows")
    with torch.no_grad():
        make_case(n=1).run("auto")
    assert "rows" not in dispatch.candidates(SHAPE, 1)


def test_triton_without_a_device(make_case, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="`backend` is 'triton'; it needs a CUDA device and x is on cpu"):
        make_case().run("triton")


@pytest.mark.parametrize(
    ("capabilities", "system"),
    [
        ({"amx_bf16": False, "avx512_bw": True}, "linux"),
        ({"amx_bf16": True, "avx512_bw": True}, "darwin"),
        ({}, "linux"),
    ],
)
def test_detection(monkeypatch, capabilities, system):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr("sys.platform", system)
    assert not backends.tile_registers.__wrapped__()
