"""The benchmark's table on a tiny shape, its rivals, and its refusal to time what is wrong."""

import csv

import pytest
import torch

from kernels import bench
from kernels.costs import Shape
from kernels.timing import random_call


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", {"tiny": (16, 64, False), "gated": (16, 64, True)})
    monkeypatch.setattr(bench, "CACHES", 1 << 14)


def test_table(tiny, capsys, tmp_path):
    file = tmp_path / "table.csv"
    bench.main(
        ["--shapes", "tiny", "gated", "--tokens", "1", "40", "--training", "8", "--seconds", "0", "--csv", str(file)]
    )
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["shape"], row["pass"], row["tokens"]) for row in rows] == [
        (shape, direction, tokens)
        for shape in ("tiny", "gated")
        for direction, tokens in (("forward", "1"), ("forward", "40"), ("train", "8"))
    ]
    for row in rows:
        assert float(row["routed_p20"]) <= float(row["routed_p50"]) <= float(row["routed_p80"])
        assert float(row["speedup"]) > 0 and float(row["error"]) <= 1e-5
        assert (row["grouped_mm_p50"] == "") == (row["pass"] == "train")
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("| shape | dtype | pass |")
    assert len(out) == 2 + len(rows)


@pytest.mark.parametrize("gated", [False, True])
def test_rivals_compute_the_same(gated):
    call = random_call(Shape(16, 64, 4, gated, "float32", "cpu", False), 6, 1.0)
    call = call._replace(gates=torch.ones(6, 4))
    expected = bench.dense_mlp(call, "gelu_new", None)
    torch.testing.assert_close(bench.dense_mlp(call, "gelu_new", call.W_out.t().contiguous()), expected)
    torch.testing.assert_close(bench.grouped_mm_mlp(call, "gelu_new"), expected)
    some = random_call(Shape(16, 64, 4, gated, "float32", "cpu", False), 6, 0.5)
    torch.testing.assert_close(
        bench.grouped_mm_mlp(some, "gelu_new"), bench.call_backend(some, "gelu_new", "reference")
    )


def test_no_number_without_parity(tiny, monkeypatch, capsys):
    right = bench.call_backend
    monkeypatch.setattr(
        bench,
        "call_backend",
        lambda call, act, backend: right(call, act, backend) * (1.001 if backend == "auto" else 1),
    )
    with pytest.raises(SystemExit, match="parity fails for Shape"):
        bench.main(["--shapes", "tiny", "--tokens", "4", "--training", "--seconds", "0"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("flag", [["--densities", "0"], ["--densities", "1.5"], ["--shapes", "huge"]])
def test_bad_flags(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(flag)
    assert stop.value.code == 2
    assert flag[0] in capsys.readouterr().err
