"""`eval.py features` on a routed model writes files that agree with each other; a refusal loses nothing."""

import csv
import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import GPTNeoForCausalLM

import slms
from slms.commands.coder import open_coder
from slms.commands.features import features
from slms.json_values import from_json_values
from slms.report.feature_schema import FeatureResults
from slms.report.feature_tables import COLUMNS, PATHWAY_COLUMNS
from slms.sae.baselines import random_coder
from slms.sae.export import Provenance, save
from slms.sae.load import load
from tests.tiny import tiny_config, word_tokenizer

WORDS = ["the", "dog", "cat", "ran", "sat", ".", "Lily", "and", "saw", "big", "<script>", "|"]
SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny routed model with tokenizer and text, a coder of its residual stream, and what the command wrote."""
    directory = tmp_path_factory.mktemp("tiny")
    fast = word_tokenizer(WORDS)
    torch.manual_seed(0)
    config = tiny_config(13, bos_token_id=0, eos_token_id=0, initializer_range=0.5)
    ids = torch.randint(13, (8, 16))
    routing = slms.RoutingConfig(n_pathways=4, k=2, every_n_layers=1)
    slms.save_model(slms.route(GPTNeoForCausalLM(config), routing, calibration=ids), fast, directory / "model")
    generator = torch.Generator().manual_seed(0)
    stories = [" ".join(WORDS[i] for i in torch.randint(12, (30,), generator=generator)) for _ in range(200)]
    (directory / "text.txt").write_text("\n<|endoftext|>\n".join(stories))
    seed(directory / "coder", directory / "model", directory / "text.txt")
    run(directory, "coder")
    return directory


def seed(directory, model, text):
    """A coder of random directions, 24 latents and 3 a token, written as SAELens does."""
    blank = random_coder_of(torch.randn(50, 8))
    where = Provenance(str(model), SITE, context_size=16, dataset_path=str(text))
    save(blank, directory, where)
    opened = open_coder(str(directory), corpus=str(text), n_tokens=512)
    save(random_coder(opened.source, opened.target, opened.x, opened.y, 24, 3).coder, directory, where)


def random_coder_of(x):
    return random_coder("same", "same", x, x, 24, 3).coder


def run(directory, name, **options):
    given = {"corpus": str(directory / "text.txt"), "n_tokens": 512, "output_dir": str(directory / "artifacts")}
    features(str(directory / name), **given | options)


@pytest.fixture(scope="module")
def results(place):
    return from_json_values(FeatureResults, json.loads((written(place) / "features.json").read_text()))


def written(place):
    (path,) = place.glob("artifacts/features/coder/*/features.json")
    return path.parent


def rows(path, columns):
    with path.open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == list(columns)
    return [dict(zip(columns, row, strict=True)) for row in table[1:]]


def test_numbers_agree(results):
    assert (results.d_sae, len(results.features), results.site) == (24, 24, "residual.1")
    assert sum(f.uses for f in results.features) == pytest.approx(results.l0 * results.tokens)
    assert results.dead == sum(f.uses == 0 for f in results.features)
    for f in results.features:
        assert sum(f.histogram) == f.uses
        if f.uses:
            assert f.strongest[0].activations[f.strongest[0].peak] == f.max >= f.mean
        values = [c.activations[c.peak] for c in f.strongest]
        assert values == sorted(values, reverse=True)
        assert len(f.promoted) == len(f.suppressed) == 10
    assert set(results.families) == {"token_class", "pos", "semantic", "frequency"}
    assert set(results.vocabulary) <= {*WORDS, "<eos>"}


def test_graph_and_neighbours(results):
    placed = [f.community for f in results.features if f.community is not None]
    assert len(placed) == results.graph.features
    assert all(c.size == placed.count(c.index) for c in results.graph.communities)
    assert all(f.index not in [n.feature for n in f.neighbours] for f in results.features)


def test_pathways(results, place):
    assert [layer.layer for layer in results.layers] == [0, 1]
    for layer in results.layers:
        assert sum(p.load for p in layer.pathways) == pytest.approx(2, abs=0.01)
        for p in layer.pathways:
            mine = [
                f.index
                for f in results.features
                if (layer.layer, p.index) in [(c.layer, c.pathway) for c in f.pathways]
            ]
            assert sorted(p.features) == mine and p.n_features == len(mine)
    table = rows(written(place) / "pathways.csv", PATHWAY_COLUMNS)
    assert len(table) == 8 and (written(place) / "pathways.png").stat().st_size > 10_000


def test_csv_has_every_feature(results, place):
    table = rows(written(place) / "features.csv", COLUMNS)
    assert [int(row["feature"]) for row in table] == list(range(24))
    assert [int(row["uses"]) for row in table] == [f.uses for f in results.features]


def test_every_coder_of_a_run(place, tmp_path, capsys):
    base = {"name": str(place / "model"), "source": "local"}
    corpus = {"name": str(place / "text.txt"), "validation": str(place / "text.txt"), "text_field": "text"}
    config = {"model": {"base": base}, "data": {"corpus": corpus, "block_size": 16, "val_tokens": 300}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="a run without saes"):
        features(str(tmp_path))
    for name in ("a", "b"):
        shutil.copytree(place / "coder", tmp_path / "saes" / name)
    features(str(tmp_path), n_tokens=256, output_dir=str(tmp_path / "out"))
    assert len(list((tmp_path / "out" / "features").rglob("features.html"))) == 2
    for path in (tmp_path / "out" / "features").rglob("features.json"):
        assert from_json_values(FeatureResults, json.loads(path.read_text())).corpus == str(place / "text.txt"), (
            "the run's"
        )
    printed = capsys.readouterr().out
    assert "features a token" in printed and "random groups of the same neurons" in printed


def test_refusals_lose_nothing(place, tmp_path):
    before = {p: p.read_bytes() for p in (place / "artifacts").rglob("*") if p.is_file()}
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.txt.*less than one block"):
        run(place, "coder", corpus=str(tmp_path / "empty.txt"))
    with pytest.raises(ValueError, match=r"'residual\.7' is not in this model; the nearest"):
        run(place, "coder", site="residual.7")
    with pytest.raises(ValueError, match="its input has 8 dimensions, but the model's site has 64"):
        run(place, "coder", model="stories-1m", corpus="stories")
    with pytest.raises(ValueError, match="reconstructs worse than the mean"):
        run(place, shifted(place, tmp_path))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "cfg.json").write_bytes((place / "coder" / "cfg.json").read_bytes())
    (tmp_path / "cut" / "sae_weights.safetensors").write_bytes(
        (place / "coder" / "sae_weights.safetensors").read_bytes()[:-100]
    )
    with pytest.raises(ValueError, match="missing or damaged"):
        run(place, tmp_path / "cut")
    assert {p: p.read_bytes() for p in (place / "artifacts").rglob("*") if p.is_file()} == before


def shifted(place, tmp_path):
    """A coder of the right shape that belongs elsewhere: its decoder's bias is far off."""
    coder = load(place / "coder")
    tensors = load_file(place / "coder" / "sae_weights.safetensors")
    tensors["b_dec"] = tensors["b_dec"] + 500 * torch.randn(coder.d_in, generator=torch.Generator().manual_seed(1))
    (tmp_path / "other").mkdir()
    save_file(tensors, tmp_path / "other" / "sae_weights.safetensors")
    (tmp_path / "other" / "cfg.json").write_bytes((place / "coder" / "cfg.json").read_bytes())
    return tmp_path / "other"
