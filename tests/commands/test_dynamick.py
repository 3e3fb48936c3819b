"""`eval.py dynamick` on a tiny model writes its files and closing line, takes routed models, and refuses bad input."""

import csv
import json

import pytest
import torch
from transformers import GPTNeoForCausalLM

import eval as eval_py
import slms
from slms.commands.arguments import parse_densities
from slms.commands.dynamick import dynamick
from slms.measure.dynamick import DENSE_RULES
from slms.measure.gguf import Timed
from slms.measure.metrics import METRICS
from slms.models.cut import cut as cut_model
from slms.models.routed import routed_modules
from slms.report.dynamick import POINT_COLUMNS
from tests.tiny import tiny_config, word_tokenizer

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a dense model in dense/, a routed one in routed/ and text."""
    directory = tmp_path_factory.mktemp("tiny")
    fast = word_tokenizer(WORDS)
    torch.manual_seed(0)
    config = tiny_config(41, bos_token_id=0, eos_token_id=0)
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
    lines = list(csv.DictReader((directory / "dynamick.csv").open()))
    assert tuple(lines[0]) == POINT_COLUMNS and {line["metric"] for line in lines} <= METRICS.keys()
    points: dict[tuple, dict] = {}
    for line in lines:
        point = points.setdefault((line["subject"], line["rule"], line["target"]), {})
        point[line["place"], line["metric"], line["family"]] = line
    unchanged = points.pop(("dense", "", ""))  # the dense model itself
    assert float(unchanged["model", "ratio", ""]["value"]) == float(unchanged["model", "density", ""]["value"]) == 1
    return points, json.loads((directory / "dynamick.json").read_text()), directory


def value(point, metric, family="", place="model"):
    return float(point[place, metric, family]["value"])


def test_a_dense_model(place, capsys):
    rules = {"rule": ["griffin", "low_rank"], "budget": "uniform"}
    points, results, directory = run(place, "dense", density=["0.25", "0.5"], **rules, seconds=0.02)
    assert list(points) == [("dense", rule, k) for rule in ("griffin", "low_rank") for k in ("0.25", "0.5")]
    for (_, rule, target), point in points.items():
        assert value(point, "density") == pytest.approx(float(target), abs=0.02)
        ratio = point["model", "ratio", ""]
        assert float(ratio["low"]) <= float(ratio["value"]) <= float(ratio["high"])
        assert value(point, "model_speedup", "decode") > 0 and value(point, "mlp_speedup", "prefill") > 0
        shares = [value(point, "density", place=place) for place in ("L0.mlp", "L1.mlp")]
        assert sum(shares) / 2 == pytest.approx(value(point, "density"))
        stored = [
            row["value"]
            for row in results["rows"]
            if (row["rule"], row["target"], row["metric"]) == (rule, float(target), "mlp_flops")
        ]
        assert stored == [value(point, "mlp_flops", family) for family in ("", "prefill")]
        assert value(point, "mlp_share", "prefill") == 1, "both rules run prompts dense"
    assert (directory / "frontier.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert results["closing"] in out and out.strip().splitlines()[-1] == results["closing"]
    assert set(results["break_even"]) == {"griffin", "low_rank"}


def test_a_rule_past_its_break_even_runs_dense_and_says_so(place, capsys):
    options = {"density": ["0.95"], "rule": ["low_rank"], "budget": "uniform", "seconds": 0.02}
    points, results, _ = run(place, "dense", **options)
    assert list(points) == [("dense", "low_rank", "0.95"), ("as run", "low_rank", "0.95")]
    alone, as_run = points.values()
    assert value(alone, "density") == pytest.approx(0.95, abs=0.02) and ("model", "mlp_speedup", "decode") not in alone
    assert value(as_run, "ratio") == pytest.approx(1, abs=1e-5)
    assert value(as_run, "density") == value(as_run, "mlp_share") == 1
    assert value(as_run, "model_speedup", "decode") > 0
    assert results["runs_dense"][0]["places"] == ["L0.mlp", "L1.mlp"]
    assert (
        "low_rank at 0.95, as run: 2 of 2 MLPs run dense\nat this density the rule decodes slower"
        in capsys.readouterr().out
    )
    forced, results, _ = run(place, "dense", **options, execution="rule")
    assert list(forced) == [("dense", "low_rank", "0.95")] and results["runs_dense"] == []
    (point,) = forced.values()
    assert value(point, "ratio") == value(alone, "ratio") and value(point, "model_speedup", "decode") > 0


def test_a_routed_model_beside_the_rules_at_its_density(place):
    points, results, _ = run(place, "routed", dense=str(place / "dense"), budget="uniform")
    first, *others = points
    assert first == ("routed", "top_k", "")
    density = (0.25 + 1) / 2  # every second of two layers
    assert {rule for _, rule, _ in others} == set(DENSE_RULES) - {"cats"}
    assert all(value(point, "density") == pytest.approx(density, abs=0.05) for point in points.values())
    assert results["dense"] == str(place / "dense") and ("model", "model_speedup", "decode") not in points[first]


@pytest.fixture(scope="module")
def cut(place):
    """A copy of the dense model with half of the neurons of each MLP."""
    base, tokenizer = slms.load_base(str(place / "dense"))
    ids = torch.randint(40, (8, 16), generator=torch.Generator().manual_seed(0))
    slms.save_model(cut_model(base, dict.fromkeys(range(2), 16), ids), tokenizer, place / "cut")
    return place / "cut"


def test_other_models_beside_the_rules(place, cut):
    beside = [str(place / "routed"), str(cut)]
    options = {"density": ["0.5"], "rule": ["griffin"], "budget": "uniform", "beside": beside, "seconds": 0.02}
    points, results, directory = run(place, "dense", **options)
    assert list(points) == [("dense", "griffin", "0.5"), ("beside", "routed", ""), ("beside", "cut", "")]
    routed, half = points["beside", "routed", ""], points["beside", "cut", ""]
    assert value(half, "density") == 0.5 and value(half, "mlp_share") == value(half, "mlp_share", "prefill") == 0.5
    assert value(routed, "density") == pytest.approx((0.25 + 1) / 2)
    assert value(half, "model_speedup", "decode") > 0 and value(half, "ratio") != 1
    alone, *_ = run(place, "routed", dense=str(place / "dense"), rule=["top_k"])
    assert value(routed, "nats") == value(alone["routed", "top_k", ""], "nats")
    fastest = max((value(point, "model_speedup", "decode"), rule) for (_, rule, _), point in points.items())
    assert results["unbeaten"]["decode"][-1] == (fastest[1] if fastest[0] > 1 else "dense")
    _, alone, elsewhere = run(place, "dense", **{**options, "beside": beside[:1]})
    assert elsewhere != directory and len(json.loads((directory / "dynamick.json").read_text())["rows"]) > len(
        alone["rows"]
    )


@pytest.mark.parametrize(
    ("beside", "told"),
    [(["nowhere"], "nowhere"), (["{}/dense", "{}/dense"], "dense/dense must each be given once")],
)
def test_a_model_that_cannot_stand_beside_is_refused_before_anything_is_measured(beside, told, place, monkeypatch):
    monkeypatch.setattr("slms.commands.dynamick_points.measure_quality", None)
    with pytest.raises((ValueError, OSError), match=told):
        run(place, "dense", beside=[path.format(place) for path in beside], output_dir=str(place / "none"))
    assert not (place / "none").exists() or not any((place / "none").rglob("*.csv"))


def test_both_models_are_timed_in_llama_cpp_or_have_the_reason(place, monkeypatch):
    seen = {}

    def times(models, tokenizer, prompt):
        seen.update({name: {mlp.k for mlp in routed_modules(model).values()} for name, model in models.items()})
        return [Timed(name, "f32", None, f"no {name} here") for name in models]

    monkeypatch.setattr("slms.commands.dynamick.time_models", times)
    options = {"dense": str(place / "dense"), "rule": ["top_k"], "density": ["1.0"], "seconds": 0.02}
    _, results, _ = run(place, "routed", **options)
    assert seen == {"dense": set(), "routed": {2}}, "the routed model is timed as trained, not at --density"
    assert [(row["model"], row["why_not"]) for row in results["llama_cpp"]] == [
        ("dense", "no dense here"),
        ("routed", "no routed here"),
    ]


def test_rules_of_a_routed_model(place):
    points, *_ = run(place, "routed", dense=str(place / "dense"), rule=["top_p", "threshold"], density=["0.5"])
    assert [rule for _, rule, _ in points] == ["top_p", "threshold"]
    assert all(0.7 <= value(point, "density") <= 1 for point in points.values())  # fitted on calibration tokens


@pytest.mark.parametrize(
    "word",
    [
        *("0", "1.5", "a", "0.5:0.1", "0.5:0.1:0.1", "0.1:0.5:0", "0.1:inf:0.1", "", "nan"),
        *("0.1:1.05:0.1", "0.1:1e9:0.001", "-1e9:0.5:0.001", "0.1:0.5:1e-9", "1e-9:0.5:0.1", "inf:inf:1", "0.1:1:inf"),
    ],
)
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
        (["--execution", "dense"], "--execution dense: it must be one of fastest, rule"),
        (["--budget", "big"], "--budget big: it must be one of published, uniform, loss"),
        (["--dense", "x", "--model", "routed"], "x"),
        (["--dense", "x"], "--dense x: --model dense is not routed; only a routed model is compared with another"),
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
