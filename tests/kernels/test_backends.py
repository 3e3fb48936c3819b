"""Each backend that cannot run here says why, and this CPU is asked the right questions."""

import functools
import importlib.util

import pytest
import torch

from slms.kernels import backends, costs, dispatch

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
    assert "rows" not in dispatch.candidates(SHAPE)


def test_triton_without_a_device(make_case, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="`backend` is 'triton'; it needs a CUDA device and x is on cpu"):
        make_case().run("triton")


@pytest.mark.parametrize(("found", "said"), [([(9, 0), (7, 5)], "and one here has 7.5"), ([(9, 0), (8, 0)], None)])
def test_triton_on_an_old_device(monkeypatch, found, said):
    monkeypatch.setattr(backends, "_installed", functools.cache(lambda package: True))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_capability", found.__getitem__)
    why = backends.refusal("triton", "cuda", torch.float32)
    assert why is said or said in why
    assert dispatch.candidates(SHAPE._replace(device="cuda")) == ["dense"] + ["triton"] * (said is None)


def test_triton_with_many_pathways(make_case, monkeypatch):
    monkeypatch.setattr(backends, "_installed", functools.cache(lambda package: True))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    most = backends.GPU_UNITS
    with pytest.raises(ValueError, match=f"it takes up to {most} pathways or units, and there are {most + 1}"):
        make_case(n=1, d=1, offsets=tuple(range(most + 2))).run("triton")
    for p, expected in ((most, ["dense", "triton"]), (most + 1, ["dense"])):
        assert dispatch.candidates(SHAPE._replace(device="cuda", n_pathways=p)) == expected


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


@pytest.mark.parametrize(
    ("answer", "compiled_for", "expected"), [(0, "", True), (-1, "", False), (0, "skylake-avx512", False)]
)
def test_detection_asks_the_system(monkeypatch, answer, compiled_for, expected):
    class System:
        def __init__(self, name):
            self.syscall = lambda *numbers: answer

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "avx512_bw": True})
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(backends.ctypes, "CDLL", System)
    monkeypatch.setenv("NUMBA_CPU_NAME", compiled_for)
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)
    assert backends.tile_registers.__wrapped__() is expected
