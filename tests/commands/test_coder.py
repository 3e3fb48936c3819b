"""A crosscoder of a base and its routed model, from training to the commands that measure and show it."""

import json
import shutil

import lightning as L
import pytest
import torch
from transformers import GPTNeoForCausalLM

import slms
from slms.callbacks.coders import CoderWriter
from slms.commands.coder import open_coder
from slms.commands.export_coders import neuronpedia
from slms.commands.features import features
from slms.commands.sae import sae
from slms.data.corpora import CorpusConfig
from slms.lit.sparse_autoencoder import SparseAutoencoder
from slms.models.activation_stream import ActivationData, BufferConfig
from slms.models.base import BaseConfig
from slms.sae.config import CoderConfig, CoderSpec
from slms.sae.optim import CoderOptimizerConfig
from tests.tiny import tiny_config, word_tokenizer

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, a finished run of its routed model, a text, and a run's directory with their crosscoder."""
    directory = tmp_path_factory.mktemp("two")
    fast = word_tokenizer(WORDS)
    torch.manual_seed(3)
    base = GPTNeoForCausalLM(tiny_config(41, bos_token_id=0, eos_token_id=0, initializer_range=0.3)).eval()
    slms.save_model(base, fast, directory / "base")
    routing = slms.RoutingConfig(n_pathways=4, k=2, every_n_layers=1)
    second = slms.route(base, routing, calibration=torch.randint(41, (8, 16)))
    slms.save_model(second, fast, directory / "routed" / "model")
    (directory / "routed" / "config.yaml").touch()
    generator = torch.Generator().manual_seed(0)
    stories = [" ".join(WORDS[i] for i in torch.randint(40, (30,), generator=generator)) for _ in range(300)]
    (directory / "text.txt").write_text("\n<|endoftext|>\n".join(stories))
    module = SparseAutoencoder(
        BaseConfig(name=str(directory / "base")),
        [CoderSpec("residual.1", coder=CoderConfig(kind="batch_topk", d_sae=64, k=4))],
        CoderOptimizerConfig(lr=5e-3),
        str(directory / "routed"),
    )
    data = ActivationData(
        CorpusConfig(name=str(directory / "text.txt")),
        module.tokenizer,
        "local",
        BufferConfig(batch_size=64, chunk_tokens=512, lm_batch_size=4),
        block_size=16,
        train_tokens=None,
        epoch_tokens=64 * 100,
        val_tokens=256,
    )
    run = directory / "run"
    L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=L.pytorch.loggers.CSVLogger(run, name="", version=""),
        default_root_dir=run,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=[CoderWriter()],
    ).fit(module, data)
    return directory


def text(place):
    return {"corpus": str(place / "text.txt"), "n_tokens": 512}


def test_it_is_saved_and_loaded(place):
    directory = place / "run" / "saes" / "residual.1"
    coder, config = slms.load_coder(directory), json.loads((directory / "cfg.json").read_text())
    assert (config["architecture"], config["n_sources"]) == ("jumprelu_crosscoder", 2)
    assert config["metadata"]["versus_model_name"] == str(place / "routed")
    assert coder.metadata["hook_name"] == "base:blocks.1.hook_resid_post+routed:blocks.1.hook_resid_post"
    assert "A crosscoder of type `jumprelu_crosscoder`" in (directory / "README.md").read_text()


def test_quality_of_the_whole_and_of_each_model(place, tmp_path, capsys):
    sae(str(place / "run" / "saes" / "residual.1"), control_tokens=512, output_dir=str(tmp_path), **text(place))
    out = json.loads(next(tmp_path.rglob("quality.json")).read_text())
    found = {}
    for row in out["rows"]:
        found.setdefault(row["place"], {})[row["metric"], row["family"]] = row["value"]
    one = [f"this coder, {of}:residual.1" for of in ("base", "routed")]
    assert list(found) == ["this coder", *one, "random coder", "PCA", "random model"]
    assert 0 < found["this coder"]["fvu", ""] < 1 and all(0 < found[name]["fvu", ""] < 1 for name in one)
    for metric in (("ce", ""), ("ce_clean", ""), ("ce_ablated", "zero"), ("kl", "")):
        mean = (found[one[0]][metric] + found[one[1]][metric]) / 2
        assert found["this coder"][metric] == pytest.approx(mean, rel=1e-5), metric
    assert found[one[0]]["ce_clean", ""] != found[one[1]]["ce_clean", ""]
    assert ("si", "token_class") not in found[one[0]]
    assert "the mean of the two models'" in capsys.readouterr().out


def test_the_page_says_what_only_one_model_has(place, tmp_path, capsys):
    directory = place / "run" / "saes" / "residual.1"
    features(str(directory), output_dir=str(tmp_path), **text(place))
    results = json.loads(next(tmp_path.rglob("features.json")).read_text())
    used = [f for f in results["features"] if f["uses"]]
    assert results["versus"] == str(place / "routed") and len(used) > 8
    for f in used:
        assert list(f["sources"]) == ["base:residual.1", "routed:residual.1"]
        assert sum(f["sources"].values()) == pytest.approx(1)
    for writer in results["writers"]:
        shares = [f["sources"][f"{writer['name']}:residual.1"] for f in used]
        assert writer["histogram"] == [sum(min(int(10 * s), 9) == i for s in shares) for i in range(10)]
        assert writer["n_features"] == sum(s >= 0.9 for s in shares) >= len(writer["features"])
    assert [w["name"] for w in results["writers"]] == ["base", "routed"]
    assert "of two models, the one to which the feature writes more" in results["logits"]
    assert "those that only this one has" in capsys.readouterr().out


def test_refusals(place, tmp_path):
    directory = tmp_path / "saes" / "residual.1"
    shutil.copytree(place / "run" / "saes" / "residual.1", directory)
    with pytest.raises(ValueError, match=r"^--versus \S+gone: .*no directory"):
        open_coder(str(directory), versus=str(tmp_path / "gone"), **text(place))
    with pytest.raises(ValueError, match="Neuronpedia shows coders of one"):
        neuronpedia(str(directory), tmp_path / "new", text(place))
    config = json.loads((directory / "cfg.json").read_text())
    del config["metadata"]["versus_model_name"]
    (directory / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"its cfg\.json names no second one; give --versus"):
        open_coder(str(directory), **text(place))
    assert open_coder(str(directory), versus=str(place / "routed"), **text(place)).x.shape[1] == 16
