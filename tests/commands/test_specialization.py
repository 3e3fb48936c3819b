"""`eval.py specialization` on neurons, pathways and features of small random models."""

import csv
import json

import pytest
import torch

import eval as evaluation
import slms
from slms.models.base import BaseConfig, load_base
from slms.models.io import save_model

TEXT = ["--n-tokens=4096", "--block-size=64", "--task-id", "stories_place", "ioi_minimal"]
COMPLETE = ("value", "null_mean", "null_sd", "n", "control")
QUICK = [*TEXT, "--n-nulls=2", "--random=false"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small dense model and a routed one, in directories."""
    directory = tmp_path_factory.mktemp("models")
    dense = load_base(BaseConfig(name="stories-1m", init="random", d_model=16, n_layers=2, n_heads=2))
    save_model(dense.model, dense.tokenizer, directory / "dense")
    ids = torch.randint(0, 500, (8, 64), generator=torch.Generator().manual_seed(0))
    routed = slms.route(dense.model, slms.RoutingConfig(n_pathways=8, k=2, every_n_layers=1), calibration=ids)
    save_model(routed, dense.tokenizer, directory / "routed")
    return directory


def run(args, out):
    evaluation.main(["specialization", *args, f"--output-dir={out}"])
    (directory,) = (path.parent for path in (out / "specialization").rglob("specialization.csv"))
    with (directory / "specialization.csv").open() as file:
        rows = {(row["place"], row["metric"], row["family"]): row for row in csv.DictReader(file)}
    with (directory / "units.csv").open() as file:
        units = list(csv.DictReader(file))
    return directory, rows, units


def test_neurons_with_nulls_intervals_and_random_weights(place, tmp_path, capsys):
    directory, rows, units = run(["--model", str(place / "dense"), *TEXT, "--n-nulls=3"], tmp_path)
    first = "L0.mlp"
    for metric, family in (
        ("si", "pos"),
        ("si", "domain"),
        ("si", "task"),
        ("si_given_token", "semantic"),
        ("si_given_token", "domain"),
        ("coherence", ""),
        ("q", ""),
    ):
        row = rows[first, metric, family]
        assert all(row[key] for key in COMPLETE), row
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    gini = rows[first, "sparsity", "gini"]
    assert 0 < float(gini["value"]) < 1 and gini["control"] and gini["low"]
    mean = [float(rows[f"L{i}.mlp", "si", "pos"]["value"]) for i in range(2)]
    assert float(rows["mean", "si", "pos"]["value"]) == pytest.approx(sum(mean) / 2)
    assert float(rows[first, "active", ""]["value"]) == pytest.approx(0.1, abs=0.02)
    assert len(units) == 2 * 64 and units[0]["top_tokens"] and units[0]["class_pos"]
    about = json.loads((directory / "specialization.json").read_text())
    assert about["coverage"]["token_class"] == 1 and about["tasks"] == ["stories_place", "ioi_minimal"]
    assert (directory / "specialization.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "token_class" in printed
    assert not [line for line in printed.split("\nwritten")[0].splitlines() if len(line) > 100]


def test_pathways_with_their_partition(place, tmp_path):
    _, rows, units = run(["--model", str(place / "routed"), "--units=pathways", *QUICK], tmp_path)
    first = "L0.mlp"
    assert float(rows[first, "active", ""]["value"]) == pytest.approx(2 / 8, abs=1e-6)
    assert rows[first, "q_partition", ""]["null_sd"] and len(units) == 2 * 8
    assert float(rows[first, "sparsity", "zeros"]["value"]) >= 0.7, "three quarters of the neurons are skipped"


def test_features_of_a_coder(place, tmp_path):
    from slms.sae.coders import build_coder
    from slms.sae.config import CoderConfig
    from slms.sae.export import Provenance, save

    coder = build_coder(CoderConfig(kind="topk", d_sae=40, k=4), 16)
    provenance = Provenance(str(place / "dense"), "blocks.1.hook_resid_post", context_size=64)
    save(coder, tmp_path / "residual.1", provenance)
    _, rows, units = run(["--units=features", "--sae", str(tmp_path / "residual.1"), *QUICK], tmp_path / "out")
    assert len(units) == 40 and rows["residual.1", "si", "pos"]["null_sd"]
    assert 0 < float(rows["residual.1", "active", ""]["value"]) <= 4 / 40 + 1e-6


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--layers", "transformer.h.9.mlp"], ["transformer.h.9.mlp", "transformer.h.1.mlp"]),
        (["--families", "verbs"], ["--families", "verbs", "pos"]),
        (["--units", "heads"], ["--units", "heads", "pathways"]),
        (["--units", "pathways"], ["dense"]),
        (["--units", "features"], ["--sae"]),
        (["--active-share", "2"], ["--active_share", "2"]),
    ],
)
def test_bad_input_is_refused_in_one_line(flags, words, place, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation.main(["specialization", "--model", str(place / "dense"), *QUICK, f"--output-dir={tmp_path}", *flags])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and all(word in line for word in words), line
    assert not list(tmp_path.iterdir())
