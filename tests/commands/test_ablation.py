"""`eval.py ablation` writes its files and table for a dense and a routed model, and refuses bad input."""

import csv
import json

import pytest

import eval as evaluation
import slms
from slms.models.base import BaseConfig, load_base


@pytest.fixture(scope="module", params=["dense", "routed"])
def model(request, tmp_path_factory) -> tuple[str, str]:
    """A tiny random model with the embedded tokenizer."""
    directory = tmp_path_factory.mktemp(request.param)
    net, tokenizer = load_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=2, n_heads=2))
    if request.param == "routed":
        ids = tokenizer("Once upon a time there was a dog. " * 10, return_tensors="pt").input_ids
        net = slms.route(net, slms.RoutingConfig(n_pathways=4, k=2, layers=[1]), calibration=ids)
    slms.save_model(net, tokenizer, str(directory))
    return str(directory), request.param


FLAGS = ["--n_tokens=2048", "--block_size=64", "--families", "token_class", "--n_random=8"]


def test_files_and_table(model, tmp_path, capsys):
    path, kind = model
    layers = ["--layers", "1"] if kind == "dense" else []
    evaluation.main(["ablation", path, *FLAGS, *layers, f"--output_dir={tmp_path}"])
    printed = capsys.readouterr().out
    (directory,) = (path.parent for path in (tmp_path / "ablation").rglob("ablation.csv"))
    row, detectable = csv.DictReader((directory / "ablation.csv").open())
    cells = list(csv.DictReader((directory / "matrix.csv").open()))
    about = json.loads((directory / "ablation.json").read_text())
    assert (row["place"], row["metric"], row["family"]) == ("L1.mlp", "si_causal", "token_class")
    assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    assert float(row["difference"]) == pytest.approx(float(row["value"]) - float(row["control"]))
    assert float(row["difference_low"]) < float(row["difference"]) < float(row["difference_high"])
    assert detectable["metric"] == "si_causal_detectable" and float(detectable["value"]) > 0
    units = about["units"]["L1.mlp"]
    assert units["kind"] == {"dense": "community", "routed": "pathway"}[kind]
    assert {cell["unit"] for cell in cells} == {str(u) for u in range(units["units"])}
    assert about["rows"][0]["value"] == float(row["value"])
    assert (directory / "ablation.png").stat().st_size > 5000
    assert "SI-causal" in printed and "token_class" in printed
    named = [f"without L1.mlp {units['kind']} {u}: " for u in range(units["units"])]
    assert all(name in printed for name in named), "a line a unit"
    assert printed.index("random set 0") < printed.index("a power of 80 %") < printed.index(named[0]), "power first"
    assert units["random_sets"] == 8 and units["contribution_error"] < 0.3


def test_heads_beside_pathways(tmp_path, capsys):
    """Of a model that routes both, each place has its rows, cells and units, and --layers names both parts."""
    net, tokenizer = load_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=2, n_heads=2))
    ids = tokenizer("Once upon a time there was a dog. " * 10, return_tensors="pt").input_ids
    routing = slms.RoutingConfig(n_pathways=3, k=1, layers=[1], target="both", k_heads=1)
    slms.save_model(slms.route(net, routing, calibration=ids), tokenizer, str(tmp_path / "model"))
    flags = [*FLAGS[:-1], "--n_random=4", "--layers", "1", f"--output_dir={tmp_path}"]
    evaluation.main(["ablation", str(tmp_path / "model"), *flags])
    printed = capsys.readouterr().out
    (directory,) = (path.parent for path in (tmp_path / "ablation").rglob("ablation.csv"))
    rows = list(csv.DictReader((directory / "ablation.csv").open()))
    cells = list(csv.DictReader((directory / "matrix.csv").open()))
    about = json.loads((directory / "ablation.json").read_text())
    assert [(row["place"], row["metric"]) for row in rows] == [
        (place, metric) for metric in ("si_causal", "si_causal_detectable") for place in ("L1.attn", "L1.mlp")
    ]
    assert {place: (units["kind"], units["units"]) for place, units in about["units"].items()} == {
        "L1.attn": ("head", 2),
        "L1.mlp": ("pathway", 3),
    }
    assert {cell["neurons"] for cell in cells if cell["place"] == "L1.attn"} == {"4"}
    assert all(f"without L1.attn head {head}: " in printed for head in range(2))
    assert "pathways, query heads" in printed and (directory / "ablation.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--layers", "7"], ["--layers 7", "0 to 1"]),
        (["--families", "colour"], ["--families colour", "pos"]),
        (["--by=noise"], ["by", "noise"]),
        (["--n_random=3"], ["--n_random 3", "at least 4"]),
        (["--corpus=none.txt"], ["none.txt", "no such file"]),
    ],
)
def test_bad_input_is_one_line(model, flags, told, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation.main(["ablation", model[0], *FLAGS[:2], *flags, f"--output_dir={tmp_path}"])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error and all(word in error for word in told), error
    assert not any(tmp_path.iterdir())
