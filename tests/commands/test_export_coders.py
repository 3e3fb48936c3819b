"""The coders of a run leave as a Neuronpedia export and as a transcoder set; what makes no set is refused."""

import gzip
import json
import shutil

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import GPTNeoForCausalLM

from slms.commands.coder import open_coder
from slms.commands.export_coders import circuit_tracer, neuronpedia, trained_kind
from slms.sae.baselines import random_coder
from slms.sae.export import Provenance, save
from tests.tiny import tiny_config, word_tokenizer

WORDS = ["the", "dog", "cat", "ran", "sat", ".", "Lily", "and", "saw", "big", "<b>", "|"]
SITES = {
    "r": ("blocks.1.hook_resid_post", None),
    "t0": ("blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out"),
    "t1": ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model with text, an autoencoder and a TopK transcoder of each layer, of random directions."""
    directory = tmp_path_factory.mktemp("tiny")
    fast = word_tokenizer(WORDS)
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(tiny_config(13, bos_token_id=0, eos_token_id=0, initializer_range=0.5))
    model.save_pretrained(directory / "model")
    fast.save_pretrained(directory / "model")
    stories = [" ".join(WORDS[i] for i in torch.randint(12, (30,))) for _ in range(200)]
    (directory / "text.txt").write_text("\n<|endoftext|>\n".join(stories))
    for name, (hook, out) in SITES.items():
        where = Provenance(
            str(directory / "model"), hook, hook_name_out=out, context_size=16, dataset_path=str(directory / "text.txt")
        )
        x = torch.randn(50, 8)
        save(random_coder("a", "a" if out is None else "b", x, x, 24, 3).coder, directory / "saes" / name, where)
        opened = open_coder(str(directory / "saes" / name), n_tokens=512)
        coder = random_coder(opened.source, opened.target, opened.x, opened.y, 24, 3).coder
        with torch.no_grad():
            coder.W_enc.mul_(coder.W_dec.norm(dim=1)[:, None])
            coder.b_enc.mul_(coder.W_dec.norm(dim=1))
            coder.W_dec.div_(coder.W_dec.norm(dim=1)[:, None])
        save(coder, directory / "saes" / name, where)
    return directory


TEXT = {"n_tokens": 512}


def test_every_coder_for_neuronpedia(place, tmp_path):
    said = neuronpedia(str(place / "saes"), tmp_path, TEXT)
    (model,) = (tmp_path / "v1").iterdir()
    assert model.name == "model"  # the end of its path
    sources = {path.name for path in model.iterdir()}
    assert sources == {"1-residual-topk-24__r", "0-mlp_in-to-mlp_out-topk-24__t0", "1-mlp_in-to-mlp_out-topk-24__t1"}
    assert all(f"{model.name}/{name}: 24 features" in said for name in sources)
    one = model / "1-residual-topk-24__r"
    lines = gzip.decompress((one / "features" / "batch-0.jsonl.gz").read_bytes()).splitlines()
    assert len(lines) == 24
    assert len(json.loads(lines[0])["pos_str"]) == 10
    described = json.loads((one / "model.jsonl").read_text())
    assert (described["layers"], described["neuronsPerLayer"]) == (2, 32)
    source = json.loads((one / "source.jsonl").read_text())
    assert source["num_tokens_in_prompt"] == 16 and source["dataset"] == "text.txt (every 50th document)"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    text = [gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in written]
    assert not any(str(place).encode() in content for content in text)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "v1"}  # the importer reads what v1/ holds
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.tags == ["slms", "sparse-autoencoder", "neuronpedia"] and "## How it was made" in card.content
    assert "| `v1/model/1-residual-topk-24__r` | 24 | " in card.content and "text.txt" in card.content


def test_coders_of_one_site_and_width_keep_apart_by_trained_kind_and_name(place, tmp_path):
    """BatchTopK and Matryoshka are stored alike; a second of the same kind has a name."""
    run = tmp_path / "run"
    spec = {"site": "residual.1", "target": None, "name": None, "coder": {"kind": "batch_topk"}}
    names = ("residual.1", "other", "sparser")
    coders = [spec, spec | {"name": "other", "coder": {"kind": "matryoshka"}}, spec | {"name": "sparser"}]
    for name in names:
        shutil.copytree(place / "saes" / "r", run / "saes" / name)
    base = {"name": str(place / "model"), "source": "local"}
    corpus = {"name": str(place / "text.txt"), "validation": None, "text_field": "text"}
    data = {"corpus": corpus, "block_size": 16, "val_tokens": 512}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"base": base, "coders": coders}, "data": data}))
    kinds = [trained_kind(run / "saes" / name) for name in names]
    assert kinds == ["batch_topk", "matryoshka", "batch_topk"] and trained_kind(place / "saes" / "r") is None
    neuronpedia(str(run), tmp_path / "new", TEXT)
    found = {path.name for path in (tmp_path / "new" / "v1").glob("*/*")}
    made = {"1-residual-batch_topk-24", "1-residual-matryoshka-24__other", "1-residual-batch_topk-24__sparser"}
    assert found == made
    neuronpedia(str(run / "saes" / "other"), tmp_path / "alone", TEXT)
    assert [path.name for path in (tmp_path / "alone" / "v1").glob("*/*")] == ["1-residual-matryoshka-24__other"]


def test_the_transcoders_for_circuit_tracer(place, tmp_path):
    said = circuit_tracer(f"{place / 'saes' / 't1'},{place / 'saes' / 't0'}", tmp_path, TEXT)
    layers = {"layer_0.safetensors", "layer_1.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.yaml", *layers}
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model_name"] == "model"
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.get("library_name") == "circuit-tracer" and card.data.base_model is None
    assert "one for each of its 2 layers, with 24 features each" in card.content
    assert "load_transcoder_set" in card.content
    assert "- layer 0: TopK became a threshold" in card.content and str(place) not in card.content
    assert "layer 0: TopK became a threshold" in said and "L0 3.0 instead of 3" in said
    whole = tmp_path / "whole"
    whole.mkdir()
    circuit_tracer(str(place / "saes"), whole, TEXT)  # the autoencoder among them is left out
    for name in ("layer_0.safetensors", "layer_1.safetensors"):
        pair = load_file(tmp_path / name), load_file(whole / name)
        assert all(torch.equal(pair[0][key], pair[1][key]) for key in pair[0])


def test_what_makes_no_set(place, tmp_path):
    with pytest.raises(ValueError, match="layer 0 has no transcoder"):
        circuit_tracer(str(place / "saes" / "t1"), tmp_path, TEXT)
    with pytest.raises(ValueError, match=r"no transcoder from mlp_in\.L to mlp_out\.L"):
        circuit_tracer(str(place / "saes" / "r"), tmp_path, TEXT)
    with pytest.raises(ValueError, match="t0 is a transcoder of layer 0 too"):
        circuit_tracer(f"{place / 'saes'},{place / 'saes' / 't0'}", tmp_path, TEXT)
    assert not list(tmp_path.iterdir())
