"""`eval.py dynamick` on a tiny model: its files, its closing line, routed models, and what it refuses."""

import csv
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

import eval as eval_py
import slms
from slms.commands.dynamick import dynamick, parse_densities
from slms.report.dynamick import COLUMNS

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a dense model in dense/, a routed one in routed/ and text."""
    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, **{w: i + 1 for i, w in enumerate(WORDS)}}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", model_max_length=64)
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=41,
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global"], 2]],
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPTNeoForCausalLM(config).eval()
    slms.save_model(model, fast, directory / "dense")
    routing = slms.RoutingConfig(n_pathways=8, k=2, partition="random", router_init="random")
    slms.save_model(slms.route(model, routing), fast, directory / "routed")
    generator = torch.Generator().manual_seed(0)
    stories = [" ".join(WORDS[i] for i in torch.randint(40, (30,), generator=generator)) for _ in range(120)]
    (directory / "text.txt").write_text("\n<|endoftext|>\n".join(stories))
    return directory


def run(place, model, **options):
    text = {"corpus": str(place / "text.txt"), "validation": str(place / "text.txt"), "block_size": 16, "seconds": 0.0}
    text |= {"n_tokens": 256, "calibration_tokens": 256, "output_dir": str(place / "artifacts")}
    dynamick(str(place / model), **text | options)
    directory = max((place / "artifacts" / "dynamick" / model).glob("text-*"), key=lambda path: path.stat().st_mtime)
    rows = list(csv.DictReader((directory / "dynamick.csv").open()))
    return rows, json.loads((directory / "dynamick.json").read_text()), directory


def test_a_dense_model(place, capsys):
    rows, results, directory = run(place, "dense", density=["0.25", "0.5"], rule=["griffin", "low_rank"], seconds=0.02)
    assert tuple(rows[0]) == COLUMNS
    assert [(r["rule"], float(r["target"])) for r in rows] == [
        (rule, k) for rule in ("griffin", "low_rank") for k in (0.25, 0.5)
    ]
    for row, stored in zip(rows, results["points"], strict=True):
        assert float(row["density"]) == pytest.approx(float(row["target"]), abs=0.02)
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
        assert float(row["decode_model_speedup"]) > 0 and float(row["prefill_mlp_speedup"]) > 0
        assert set(stored["densities"]) == {"L0.mlp", "L1.mlp"} and stored["mlp_flops"] == float(row["mlp_flops"])
    assert (directory / "frontier.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert results["closing"] in out and out.strip().splitlines()[-1] == results["closing"]
    assert set(results["break_even"]) == {"griffin", "low_rank"}


def test_a_routed_model_beside_the_rules_at_its_density(place):
    rows, results, _ = run(place, "routed", dense=str(place / "dense"), budget="uniform")
    first, *others = rows
    assert (first["subject"], first["rule"], first["target"]) == ("routed", "top_k", "")
    density = (0.25 + 1) / 2  # every second of two layers
    assert {row["rule"] for row in others} == {"oracle", "cett", "teal", "low_rank", "griffin", "static", "router"}
    assert all(float(row["density"]) == pytest.approx(density, abs=0.05) for row in rows)
    assert results["dense"] == str(place / "dense") and rows[0]["decode_model_speedup"] == ""


def test_rules_of_a_routed_model(place):
    rows, *_ = run(place, "routed", dense=str(place / "dense"), rule=["top_p", "threshold"], density=["0.5"])
    assert [row["rule"] for row in rows] == ["top_p", "threshold"]
    assert all(0.7 <= float(row["density"]) <= 1 for row in rows)  # fitted on calibration tokens


@pytest.mark.parametrize("word", ["0", "1.5", "a", "0.5:0.1", "0.5:0.1:0.1", "0.1:0.5:0", "0.1:inf:0.1", "", "nan"])
def test_bad_densities(word):
    with pytest.raises(ValueError, match=r"--density .*: it must be a density"):
        parse_densities(["0.5", word])


def test_densities():
    assert parse_densities(["0.1:1.0:0.1"]) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert parse_densities(["0.5", "0.25", "0.1:0.3:0.1"]) == [0.1, 0.2, 0.25, 0.3, 0.5]
    with pytest.raises(ValueError, match=r"--density is empty"):
        parse_densities([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rule", "magic", "--model", "./nowhere"], "--rule magic: it must be one of oracle,"),
        (["--rule", "griffin,top_p"], "--rule top_p: on this model it must be one of oracle,"),
        (["--rule", "cats"], "needs a gated MLP"),
        (["--k", "2"], "--density 2: it must be a density"),
        (["--density", "0.5", "2", "--model", "./nowhere"], "--density 2: it must be a density"),
        (["--budget", "big"], "--budget big: it must be loss or uniform"),
        (["--dense", "x", "--model", "routed"], "x"),
        (["--model", "routed"], "a routed model, and no run that names its base; give --dense"),
        (["--model", "routed", "--dense", "routed"], "this model is routed too"),
        (
            ["--model", "routed", "--dense", "dense", "--rule", "griffin"],
            "--rule griffin: on this model it must be one",
        ),
    ],
)
def test_refusals(place, monkeypatch, capsys, options, message):
    monkeypatch.chdir(place)
    model = [] if "--model" in options else ["--model", "dense"]
    text = ["--corpus", "text.txt", "--validation", "text.txt", "--block_size", "16", "--n_tokens", "64"]
    with pytest.raises(SystemExit) as stop:
        eval_py.main(
            [
                "dynamick",
                *model,
                *options,
                *text,
                "--calibration_tokens",
                "64",
                "--seconds",
                "0",
                "--output_dir",
                "refused",
            ]
        )
    assert stop.value.code == 2 and not (place / "refused").exists()
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
