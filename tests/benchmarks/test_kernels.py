"""The benchmark makes its table on a tiny shape, runs its rivals, and refuses to time a wrong result."""

import csv

import pytest

from benchmarks import kernels as bench
from slms.kernels.costs import Shape


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
        assert float(row["grouped_mm_p50"]) > 0 and row["scattermoe_p50"] == ""
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("| shape | dtype | pass |")
    assert len(out) == 2 + len(rows)


@pytest.mark.parametrize(("n_tokens", "training", "expected"), [(4, False, ["auto"]), (4, True, []), (64, False, [])])
def test_steps_of_decoding_are_graphs_on_a_gpu(monkeypatch, n_tokens, training, expected):
    captured, called = [], []

    def capture(run):
        captured.append(run)
        return run

    monkeypatch.setattr(bench, "graphed", capture)
    runs = {
        name: [lambda i=i, name=name: called.append((name, i)) for i in range(3)] for name in ("auto", "grouped_mm")
    }
    shape = Shape(16, 64, 4, False, "bfloat16", "cuda", training)
    timed, at_once = bench.arrange(runs, shape, n_tokens)
    assert at_once == 3 and [name for name, run in timed.items() if run in captured] == expected
    timed["grouped_mm"]()
    assert called == [("grouped_mm", 0), ("grouped_mm", 1), ("grouped_mm", 2)]


def test_no_number_without_parity(tiny, monkeypatch, capsys):
    right = bench.routed_mlp
    monkeypatch.setattr(
        bench,
        "routed_mlp",
        lambda call, backend: right(call, backend) * (1.001 if backend == "auto" else 1),
    )
    with pytest.raises(SystemExit, match="parity fails for Shape"):
        bench.main(["--shapes", "tiny", "--tokens", "4", "--training", "--seconds", "0"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("training", [False, True])
def test_no_number_where_the_call_with_the_router_is_wrong(tiny, monkeypatch, capsys, training):
    right = bench.routed

    def wrong(*arguments):
        run = right(*arguments)
        return lambda: run() * 1.001

    monkeypatch.setattr(bench, "routed", wrong)
    tokens = ["--tokens", "--training", "4"] if training else ["--tokens", "4", "--training"]
    with pytest.raises(SystemExit, match="parity fails for Shape"):
        bench.main(["--shapes", "tiny", "--seconds", "0", *tokens])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "flag", [["--densities", "0"], ["--densities", "1.5"], ["--shapes", "huge"], ["--backend", "triton"]]
)
def test_bad_flags(flag, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit) as stop:
        bench.main(flag)
    assert stop.value.code == 2
    assert flag[0] in capsys.readouterr().err
