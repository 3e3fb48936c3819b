"""`eval.py sae` measures a directory that a run wrote and its baselines, and refuses bad input."""

import csv
import json

import lightning as L
import matplotlib.image
import pytest
import torch
from transformers import GPTNeoForCausalLM

from slms.callbacks.coders import CoderWriter
from slms.commands.coder import open_coder
from slms.commands.sae import sae
from slms.data.corpora import CorpusConfig
from slms.lit.sparse_autoencoder import SparseAutoencoder
from slms.measure.passes import batches
from slms.measure.rows import COLUMNS
from slms.metrics.functional import specialization_index
from slms.models.activation_stream import ActivationData, BufferConfig
from slms.models.base import BaseConfig
from slms.models.sites import read_sites
from slms.report.artifacts import artifact_directory
from slms.sae.config import CoderConfig, CoderSpec
from slms.sae.load import load
from slms.sae.optim import CoderOptimizerConfig
from tests.tiny import tiny_config, word_tokenizer

WORDS = [f"w{i}" for i in range(40)]


class Interrupt(L.Callback):
    """Ctrl-C after some steps."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny language model with its tokenizer and text, and a run's directory of coders of it."""
    directory = tmp_path_factory.mktemp("tiny")
    fast = word_tokenizer(WORDS)
    fast.save_pretrained(directory)
    torch.manual_seed(3)  # not the seed that `random_twin` takes: the control must be another model
    config = tiny_config(41, bos_token_id=0, eos_token_id=0)
    GPTNeoForCausalLM(config).save_pretrained(directory)
    generator = torch.Generator().manual_seed(0)
    stories = [" ".join(WORDS[i] for i in torch.randint(40, (30,), generator=generator)) for _ in range(300)]
    (directory / "text.txt").write_text("\n<|endoftext|>\n".join(stories))
    fit(directory, directory / "run", [])
    return directory


def fit(place, run, callbacks):
    kind = {"kind": "batch_topk", "d_sae": 64, "k": 4}
    coders = [
        CoderSpec("residual.0", coder=CoderConfig(**kind)),
        CoderSpec("mlp_in.1", "mlp_out.1", name="mlp", coder=CoderConfig(**kind)),
        CoderSpec("mlp_in.1", "mlp_out.1", name="topk", coder=CoderConfig(kind="topk", d_sae=24, k=4)),
    ]
    module = SparseAutoencoder(BaseConfig(name=str(place)), coders, CoderOptimizerConfig(lr=5e-3))
    data = ActivationData(
        CorpusConfig(name=str(place / "text.txt")),
        module.tokenizer,
        "local",
        BufferConfig(batch_size=64, chunk_tokens=512, lm_batch_size=4),
        block_size=16,
        train_tokens=None,
        epoch_tokens=64 * 100,
        val_tokens=256,
    )
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=L.pytorch.loggers.CSVLogger(run, name="", version=""),
        default_root_dir=run,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        callbacks=[*callbacks, CoderWriter()],
    )
    trainer.fit(module, data)


def run_sae(place, name, **options):
    text = {"corpus": str(place / "text.txt"), "n_tokens": 512, "output_dir": str(place / "artifacts")}
    sae(str(place / "run" / "saes" / name), **{"control_tokens": 0} | text | options)
    return json.loads((artifacts(place, name) / "quality.json").read_text())


def artifacts(place, name):
    """Where the last results went."""
    found = artifact_directory(place / "artifacts", "sae", str(place / "run" / "saes" / name)).glob("*/quality.json")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent


def by_coder(out):
    """Coder → (metric, family) → row."""
    found = {}
    for row in out["rows"]:
        found.setdefault(row["place"], {})[row["metric"], row["family"]] = row
    return found


@pytest.mark.parametrize("name", ["residual.0", "mlp"])
def test_figures_and_baselines(place, name, capsys):
    out = run_sae(place, name, control_tokens=1024)
    results = by_coder(out)
    places = {"residual.0": ("residual.0", "residual.0"), "mlp": ("mlp_in.1", "mlp_out.1")}
    assert (out["site"], out["target"]) == places[name]
    assert list(results) == ["this coder", "random coder", "PCA", "random model"]
    ours = results["this coder"]
    assert ours["l0", ""]["value"] == pytest.approx(4, abs=1.5)
    assert results["PCA"]["l0", ""]["value"] == pytest.approx(ours["l0", ""]["value"], abs=1)
    assert ours["fvu", ""]["value"] < results["random coder"]["fvu", ""]["value"] < 1
    for result in results.values():
        value, fvu = {key: row["value"] for key, row in result.items()}, result["fvu", ""]
        assert fvu["low"] - 1e-9 <= fvu["value"] <= fvu["high"] > fvu["low"] and fvu["n"] > 0
        assert value["kl", ""] > 0 and 0 <= value["dead", ""] <= 1
        cost, clean = value["ce_ablated", "zero"], value["ce_clean", ""]
        assert value["recovered", "zero"] == pytest.approx((cost - value["ce", ""]) / (cost - clean))
        assert ("recovered", "mean") in value
    # The model with random weights is another model; both coders of the model under study see the same one.
    clean = {name: result["ce_clean", ""]["value"] for name, result in results.items()}
    assert clean["random model"] != clean["this coder"] == clean["PCA"]
    assert [name for name, result in results.items() if ("si", "pos") not in result] == ["PCA"]
    assert list(out["density"]["this coder"]) == ["p5", "p25", "p50", "p75", "p95"]
    printed = capsys.readouterr().out
    assert f"{ours['fvu', '']['value']:.4f}" in printed and "1,024 tokens" in printed
    with (artifacts(place, name) / "quality.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(out["rows"])
    assert matplotlib.image.imread(artifacts(place, name) / "quality.png").shape[1] == 1400


def test_specialization_of_latents_is_that_of_their_definition(place):
    """Mutual information of one use and the class, from a dense table of every token."""
    out = run_sae(place, "residual.0", baselines=False)
    opened = open_coder(str(place / "run" / "saes" / "residual.0"), corpus=str(place / "text.txt"), n_tokens=512)
    batch = next(iter(batches(opened.subject.blocks, 64)))
    x = read_sites(opened.subject.model, batch["input_ids"], [opened.source])["residual.0"]
    kept = batch["input_ids"].flatten() != 0
    on = (opened.coder.encode(x[kept]) > 0).double()
    family = "frequency"
    classes = batch[f"labels_{family}"].flatten()[kept]
    known = classes >= 0
    one_hot = torch.nn.functional.one_hot(classes[known], len(opened.subject.blocks.label_names[family])).double()
    found = specialization_index((on[known].T @ one_hot)[None], one_hot.sum(0)[None])
    assert by_coder(out)["this coder"]["si", family]["value"] == pytest.approx(found.value, rel=1e-6)


def test_a_transcoder_that_saelens_lacks_is_written_under_our_name(place):
    config = json.loads((place / "run" / "saes" / "topk" / "cfg.json").read_text())
    assert config["architecture"] == "topk_transcoder"
    assert (place / "run" / "saes" / "mlp" / "cfg.json").exists()


def test_interrupt_saves_weights(place, tmp_path):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(place, tmp_path, [Interrupt(20)])
    coder = load(tmp_path / "saes" / "residual.0")
    assert coder.threshold.min() > 0
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 20
    assert state["ActivationData"]["done"] == 20


def test_refusals(place, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        run_sae(place, "nothing")
    with pytest.raises(ValueError, match=r"'residual\.9' is not in this model; the nearest"):
        run_sae(place, "residual.0", site="residual.9")
    with pytest.raises(ValueError, match="its input has 8 dimensions, but the model's site has 32"):
        run_sae(place, "residual.0", site="neurons.0", target="neurons.0")
    with pytest.raises(ValueError, match="names no target"):
        run_sae(place, "mlp", target="mlp_in.1")
