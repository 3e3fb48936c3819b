"""Backend "auto" picks the right one, explicit backends refuse what they cannot run, and the log says so."""

import logging

import pytest
import torch

from slms import kernels
from slms.kernels import backends, costs, dispatch


@pytest.fixture(autouse=True)
def fresh_choices():
    dispatch.forget_choices()
    yield
    dispatch.forget_choices()


def set_times(shape, tokens, density, **us):
    costs.save_measurements(shape, [{"tokens": tokens, "density": density, "us": us}])
    dispatch.forget_choices()


OFFSETS = (0, 4, 8, 12)
SHAPE = costs.Shape(8, 12, 3, False, "float32", "cpu", False)


def test_a_calibration_decides(make_case, caplog):
    for winner in ("dense", "grouped", "rows"):
        times = {"dense": 9.0, "grouped": 9.0, "rows": 9.0} | {winner: 1.0}
        set_times(SHAPE, 8, 0.5, **times)
        assert kernels.explain(7, 8, OFFSETS, 0.5).startswith(f"{winner} for 7 tokens at density 0.5: {winner} 1 µs")
        assert "calibrated at 8 tokens" in kernels.explain(7, 8, OFFSETS, 0.5)
        case = make_case()
        with caplog.at_level(logging.INFO, "slms.kernels.dispatch"), torch.no_grad():
            caplog.clear()
            expected = case.run(winner)
            assert torch.equal(case.run("auto"), expected)
            assert torch.equal(case.run("auto"), expected)
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) <= 1  # once per shape
        assert all(line.startswith(winner) for line in lines)


def test_a_calibration_without_a_backend_of_today_is_not_used():
    set_times(SHAPE, 8, 0.5, dense=2.0, grouped=1.0)
    assert "not calibrated" in kernels.explain(7, 8, OFFSETS, 0.5)


def test_logs_once_what_runs(make_case, caplog):
    case = make_case()
    with caplog.at_level(logging.INFO, "slms.kernels.dispatch"):
        case.run("auto")
        case.run("auto")
    assert len(caplog.records) == 1
    assert "training=True" in caplog.text


def test_training_is_calibrated_apart(make_case):
    set_times(SHAPE._replace(training=True), 8, 0.5, dense=2.0, grouped=1.0, rows=2.0)
    assert kernels.explain(7, 8, OFFSETS, 0.5, training=True).startswith("grouped")
    assert "not calibrated" in kernels.explain(7, 8, OFFSETS, 0.5)


@pytest.fixture
def vectors(monkeypatch):
    """Sets how long the processor's vectors are."""

    def set_length(narrow):
        monkeypatch.setattr(costs, "narrow", lambda: narrow)
        dispatch.forget_choices()

    yield set_length
    dispatch.forget_choices()


@pytest.mark.parametrize(
    ("n", "p", "expected"),
    [(1, 16, "rows"), (128, 16, "grouped"), (128, 48, "dense"), (512, 16, "grouped"), (2048, 48, "grouped")],
)
def test_without_calibration_on_short_vectors(vectors, n, p, expected):
    """SmolLM2-135M's MLP at half of its neurons, with the fastest that was measured with AVX2 (docs/log.md)."""
    vectors(narrow=True)
    assert kernels.explain(n, 576, tuple(range(0, 1537, 1536 // p)), 0.5, gated=True).startswith(expected)
    small = tuple(range(0, 257, 8))
    assert all(kernels.explain(2048, 64, small, 11 / 32, training=t).startswith("rows") for t in (False, True))


@pytest.mark.parametrize(
    ("n", "d", "f", "density", "training", "dtype", "expected"),
    [
        (1, 512, 2048, 0.25, False, torch.float32, "rows"),
        (1024, 512, 2048, 0.25, False, torch.float32, "rows"),
        (1024, 512, 2048, 0.25, False, torch.float16, "grouped"),
        (2048, 512, 2048, 0.25, True, torch.float32, "rows"),
        (2048, 512, 2048, 0.25, True, torch.bfloat16, "amx"),
        (2048, 512, 2048, 1.0, True, torch.float32, "dense"),
        (64, 512, 2048, 0.25, False, torch.bfloat16, "amx"),
        (64, 512, 2048, 1.0, False, torch.bfloat16, "dense"),
        (64, 64, 256, 0.25, True, torch.float32, "rows"),
    ],
)
def test_without_calibration(monkeypatch, vectors, n, d, f, density, training, dtype, expected):
    monkeypatch.setattr(backends, "tile_registers", lambda: True)
    vectors(narrow=False)
    offsets = tuple(range(0, f + 1, f // 16))
    said = kernels.explain(n, d, offsets, density, training=training, dtype=dtype)
    assert said.startswith(expected), said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(activation="tanh"), "`activation` is 'tanh'; it must be one of gelu, "),
        (dict(offsets=(0, 4, 3, 12)), r"`offsets` is \(0, 4, 3, 12\); it must start at 0"),
        (dict(offsets=(1, 4, 8, 12)), "`offsets`"),
        (dict(offsets=(0,)), "`offsets`"),
        (dict(offsets=(0, 4, 8, 13)), r"`W_in` has shape \(12, 8\); x and offsets ask for \(13, 8\)"),
        (dict(x=torch.zeros(2, 3, 8)), "`x` has shape"),
        (dict(W_out=torch.zeros(8, 12)), "`W_out` has shape"),
        (dict(b_in=torch.zeros(11)), "`b_in` has shape"),
        (dict(gates=torch.zeros(7, 4)), "`gates` has shape"),
        (dict(chosen=torch.zeros(7, 3)), "`chosen` is torch.float32"),
        (dict(W_in=torch.zeros(12, 8, dtype=torch.float64)), "`W_in` is torch.float64"),
        (dict(b_gate=torch.zeros(12)), "`b_gate` is given without `W_gate`"),
        (dict(W_out=torch.zeros(12, 8, device="meta")), "`W_out` is on meta"),
    ],
)
def test_bad_arguments(make_case, change, message):
    with pytest.raises(ValueError, match=message):
        make_case()._replace(**change).run("auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device may have been calibrated")
def test_estimates_for_a_gpu():
    offsets = tuple(range(0, 16385, 1024))
    for n, training, density, expected in (
        (1, False, 0.25, "triton"),
        (8192, True, 0.25, "triton"),
        (8192, True, 1.0, "dense"),
        (64, False, 0.5, "dense"),
    ):
        said = kernels.explain(n, 4096, offsets, density, training=training, dtype=torch.bfloat16, device="cuda")
        assert said.startswith(expected), said
        assert "not calibrated" in said


def test_autocast_runs_in_the_lower_type(make_case, close):
    case = make_case(gated=True)
    for backend in ("reference", "dense", "grouped", "rows", "auto"):
        with torch.autocast("cpu", torch.bfloat16):
            output = case.run(backend)
        assert output.dtype == torch.bfloat16
        close(output, case.reference(), torch.bfloat16, backend)
        assert torch.autograd.grad(output.sum(), case.W_in)[0].dtype == torch.float32


def fuses(backend="auto", n=1, dtype=torch.float32, d=512, weights=None):
    weights = torch.empty(4 * d, d, dtype=weights or dtype)
    return dispatch.fuses(torch.zeros(n, d, dtype=dtype), weights, 0.25, 16, False, backend)


def test_fuses_where_rows_win_and_nothing_needs_an_operator(vectors):
    vectors(narrow=False)
    assert not fuses()  # gradients are wanted
    with torch.no_grad():
        assert fuses() == fuses(n=1024) == fuses("rows", n=1024, dtype=torch.bfloat16) == "rows"
        assert fuses(dtype=torch.bfloat16) in ("rows", "amx")
        assert not fuses("dense") and not fuses(dtype=torch.float16) and not fuses(weights=torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            assert not fuses()
