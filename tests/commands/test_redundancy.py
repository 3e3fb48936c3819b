"""`eval.py redundancy` writes its rows, table and figure for a routed model, and refuses bad input."""

import csv
import json

import pytest

import eval as evaluation
import slms
from slms.models.base import BaseConfig, load_base


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A tiny routed model with the embedded tokenizer."""
    net, tokenizer = load_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=2, n_heads=2))
    ids = tokenizer("Once upon a time there was a dog. " * 10, return_tensors="pt").input_ids
    directory = tmp_path_factory.mktemp("routed")
    slms.save_model(slms.route(net, slms.RoutingConfig(n_pathways=8, k=3), calibration=ids), tokenizer, str(directory))
    return str(directory)


def test_files_and_table(model, tmp_path, capsys):
    flags = ["--n_tokens=30000", "--block_size=64", "--disabled", "1", "2", "9", "--shares", "0.25", "--draws=2"]
    evaluation.main(["redundancy", model, *flags, f"--output_dir={tmp_path}"])
    printed = capsys.readouterr().out
    (directory,) = (path.parent for path in (tmp_path / "redundancy").rglob("redundancy.csv"))
    rows = {(r["metric"], r["family"]): r for r in csv.DictReader((directory / "redundancy.csv").open())}
    disabled = [family for metric, family in rows if metric == "disabled_nats"]
    assert disabled == ["own", "all", "random", "1 replaced", "2 replaced", "1 fewer", "2 fewer"]
    kept = [r for (metric, _), r in rows.items() if metric == "retained_nats"]
    assert kept and all(r["family"].endswith(" 0.25") and r["control_sd"] for r in kept)
    for metric in ("retained_other_nats", "retained_whole_nats"):
        assert [r["family"] for (m, _), r in rows.items() if m == metric] == [r["family"] for r in kept]
    assert len(json.loads((directory / "redundancy.json").read_text())["rows"]) == len(rows)
    assert (directory / "redundancy.png").stat().st_size > 5000
    assert "best pathways disabled" in printed and "random subsets" in printed


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--disabled", "0"], ["--disabled 0", "at least 1"]),
        (["--shares", "1.5"], ["--shares 1.5", "at most 1"]),
        (["--draws=0"], ["--draws 0"]),
        (["--domains=pos"], ["--domains pos", "domain or task"]),
    ],
)
def test_bad_input_is_one_line(model, flags, told, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation.main(["redundancy", model, *flags, f"--output_dir={tmp_path}"])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error and all(word in error for word in told), error
    assert not any(tmp_path.iterdir())
