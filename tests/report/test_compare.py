"""Compared runs have the right gaps and gap ratio, honest warnings, and names that stay distinct."""

import csv
import io
from dataclasses import replace

import pytest
import torch

from slms.commands.compare import compare as command
from slms.measure.compare import compare as compare_results
from slms.measure.compare import partition_agreement
from slms.measure.schema import DocumentSums
from slms.report.compare import compare_csv, compare_table, run_names
from slms.report.results import read_results, write_results


@pytest.fixture
def runs(results_factory, tmp_path):
    """Directories of a dense, a static and two routed runs."""
    made = [("dense", 1.5), ("static", 1.8), ("routed", 1.53), ("routed", 1.55)]
    paths = []
    for i, (role, nats) in enumerate(made):
        layers = () if role == "dense" else (0, 2)
        results = results_factory(layers=layers, role=role, nats=nats, seed=i, name="run" if i > 1 else f"run_{role}")
        path = tmp_path / f"2025010{i}"
        path.mkdir()
        write_results(results, path)
        paths.append(path)
    return paths


def compare(paths):
    results = [read_results(path) for path in paths]
    return compare_results(list(zip(run_names(results, paths), results, strict=True)))


def test_gaps_and_their_ratio(runs):
    comparison = compare(runs)
    assert [run.gap for run in comparison.runs] == [None, *map(pytest.approx, (0.3, 0.03, 0.05))]
    assert comparison.gap_ratio == pytest.approx(0.04 / 0.3)
    assert "the routed gap is 0.13 of the static control's" in compare_table(comparison)
    assert comparison.runs[2].perplexity_ratio == pytest.approx(2.718281828**0.03)


@pytest.mark.parametrize("chosen", [(1, 2), (0, 2), (0, 1), (2, 3)])
def test_no_ratio_without_all_three_roles(runs, chosen):
    comparison = compare([runs[i] for i in chosen])
    assert comparison.gap_ratio is None and "gap ratio" not in compare_table(comparison)


def test_interval_of_the_gap_is_paired_over_documents(runs, results_factory):
    """Documents differ widely, the two models hardly: only pairing sees it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(50, 200, (300,), generator=generator)
    hard = torch.rand(300, generator=generator, dtype=torch.float64) * 3
    for path, extra in ((runs[0], 0.0), (runs[2], 0.03)):
        nats = ((hard + extra) * tokens).tolist()
        mean = sum(nats) / int(tokens.sum())
        results = results_factory(layers=(), role="dense" if extra == 0 else "routed", nats=mean)
        losses = replace(results.losses, by_document=DocumentSums(nats, tokens.tolist()))
        write_results(replace(results, losses=losses), path)
    run = compare([runs[0], runs[2]]).runs[1]
    assert run.gap == pytest.approx(0.03) and run.gap_low == pytest.approx(0.03) and run.gap_high == pytest.approx(0.03)
    assert compare([runs[0], runs[1]]).runs[1].gap_low is None


def test_names_stay_apart(runs):
    assert [run.run for run in compare(runs).runs][2:] == ["run 20250102", "run 20250103"]
    assert [run.run for run in compare(runs[:2]).runs] == ["run_dense", "run_static"]
    assert len({run.run for run in compare([runs[0]] * 3).runs}) == 3


def test_differences_that_spoil_the_comparison_are_said(runs, results_factory):
    results = results_factory(role="routed")
    write_results(
        replace(results, data=replace(results.data, name="other"), run=replace(results.run, tokens_trained=9)), runs[2]
    )
    comparison = compare(runs[:3])
    assert comparison.differences == {"data": ["other", "stories"], "tokens trained": [9, 4_915_200]}
    assert "note: the runs differ in tokens trained: 9, 4.92M" in compare_table(comparison)
    assert "note: the runs differ in data: other, stories" in compare_table(comparison)
    assert compare(runs[:2]).differences == {}


def test_files_and_width(runs, tmp_path, capsys):
    command([str(path) for path in runs], str(tmp_path))
    (directory,) = (path.parent for path in tmp_path.rglob("compare.csv"))
    rows = list(csv.DictReader(io.StringIO((directory / "compare.csv").read_text())))
    assert [float(row["nats"]) for row in rows] == [1.5, 1.8, 1.53, 1.55]
    assert rows[0]["gap"] == "" and float(rows[1]["gap"]) == pytest.approx(0.3)
    purities = [row.value for row in read_results(runs[2]).rows if row.metric == "purity"]
    assert rows[0]["purity"] == "" and float(rows[2]["purity"]) == pytest.approx(sum(purities) / 2)
    assert float(rows[2]["si_pos"]) > 0 and compare_csv(compare(runs).runs[:1]).count("\n") == 2
    assert (directory / "compare.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("written to ") and max(map(len, printed[:-1])) <= 120


def test_pathways_of_two_runs_are_compared_by_place(runs, monkeypatch):
    """1 if equal whatever their names, near 0 if unrelated; a run without its model is left out."""
    results = [read_results(path) for path in runs[2:]]
    labels, generator = torch.arange(64) // 8, torch.Generator().manual_seed(0)
    of = {
        "a": {"L0.mlp": labels, "L2.mlp": labels},
        "b": {"L0.mlp": 7 - labels, "L2.mlp": labels[torch.randperm(64, generator=generator)]},
    }
    found = compare_results(list(zip("ab", results, strict=True)), of)
    assert found.partitions["b"]["L0.mlp"] == 1 and abs(found.partitions["b"]["L2.mlp"]) < 0.1
    assert "pathways of b against the first run's: adjusted Rand" in compare_table(found)
    assert partition_agreement({"a": "x", "b": "y"}, of) == {} == partition_agreement({"a": "x"}, {})


def test_errors_are_one_line(runs, tmp_path):
    with pytest.raises(ValueError, match=r"^compare: 1 run given; it takes at least two$"):
        compare(runs[:1])
    with pytest.raises(ValueError, match="cannot be read"):
        compare([runs[0], tmp_path / "none"])
