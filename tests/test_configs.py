"""Every YAML parses; the Pythia ones build on their exact architectures, with random weights and the real tokenizer."""

import sys
from pathlib import Path

import pytest
import yaml
from transformers import GPTNeoXConfig, LlamaConfig, LlamaForCausalLM

from slms.callbacks import CALLBACKS, CODER_CALLBACKS
from slms.commands.suite import STORIES, WIDTHS
from slms.lit.cli import TrainCLI
from slms.lit.parser import trains_coders
from slms.lit.sparse_autoencoder import SparseAutoencoder
from slms.models.activation_stream import ActivationData
from slms.models.base import BaseConfig, init_base
from slms.models.routed import routed_modules
from tests.tiny import word_tokenizer

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
SHAPES = {"70m": (6, 512, 8), "160m": (12, 768, 12), "410m": (24, 1024, 16)}  # layers, d_model, heads


@pytest.fixture(autouse=True)
def _command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])


class ParseOnly(TrainCLI):
    def before_instantiate_classes(self):
        pass

    def instantiate_classes(self):
        pass


@pytest.mark.parametrize("name", CONFIGS)
def test_every_yaml_parses(name):
    args = [f"--config={name}"]
    coders = trains_coders(args)
    assert coders == name.startswith(("sae_", "crosscoder_"))
    kind = (CODER_CALLBACKS, args, SparseAutoencoder, ActivationData) if coders else (CALLBACKS, args)
    config = ParseOnly(*kind).config
    assert config.data.train_tokens % config.data.epoch_tokens == 0
    assert config.trainer.max_epochs * config.data.epoch_tokens == config.data.train_tokens


@pytest.mark.parametrize("size", SHAPES)
def test_pythia_yamls_build_on_their_architectures(size, shared_data, tmp_path):
    layers, d_model, heads = SHAPES[size]
    directory = tmp_path / "pythia"
    GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=d_model,
        intermediate_size=4 * d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
    ).save_pretrained(directory)
    flags = [
        f"--config=routed_pythia{size}.yaml",
        f"--model.base.name={directory}",
        "--model.base.init=random",
        f"--model.base.tokenizer={shared_data / 'tokenizers' / 'neox'}",
        "--model.base.source=auto",
        f"--output_dir={tmp_path}",
        "--data.corpus.name=stories",
        "--trainer.accelerator=cpu",
    ]
    cli = TrainCLI(CALLBACKS, flags)
    assert sum(p.numel() for p in cli.model.net.parameters()) > {"70m": 7e7, "160m": 1.6e8, "410m": 4e8}[size]
    if size == "70m":  # the whole conversion, uncalibrated: the larger ones differ in size only
        from slms.models.convert import route

        assert list(routed_modules(route(cli.model.net, cli.model.routing))) == ["L1.mlp", "L3.mlp", "L5.mlp"]
    assert cli.model.routing.routed_layers(layers) == list(range(1, layers, 2))
    assert not any(tmp_path.glob("routed_pythia*"))


SMOLLM2 = {  # what does not fit two layers of 96 neurons and 16 tokens of text at a time
    "routed_smollm2": ["--model.routing.n_pathways=96", "--model.routing.k=58", "--model.routing.k_out=38"],
    "routed_smollm2_fast": ["--model.routing.n_pathways=96", "--model.routing.k=29", "--model.routing.k_out=19"],
    "routed_smollm2_stock": ["--model.routing.n_pathways=12", "--model.routing.k=6", "--model.routing.n_shared=3"],
    "sae_smollm2": [
        "--model.coders=[{site: residual.1, coder: {kind: topk, expansion: 2, k: 4}}]",
        "--data.buffer.batch_size=32",
        "--data.buffer.chunk_tokens=64",
    ],
}


@pytest.fixture(scope="module")
def small_llama(tmp_path_factory):
    """Flags of a base of two layers, a text, and one training step."""
    folder = tmp_path_factory.mktemp("small")
    shape = dict(hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    ends = dict(bos_token_id=0, eos_token_id=0)
    LlamaForCausalLM(LlamaConfig(vocab_size=8, max_position_embeddings=16, **shape, **ends)).save_pretrained(folder)
    word_tokenizer("a b c d e f g".split()).save_pretrained(folder)
    text = folder / "text.txt"
    text.write_text("a b c d e f g a c e g b d f\n\n" * 200)
    return [
        f"--model.base.name={folder}",
        f"--data.corpus.name={text}",
        f"--output_dir={folder}",
        "--data.block_size=16",
        "--data.train_tokens=64",
        "--data.epoch_tokens=64",
        "--data.val_tokens=64",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.fast_dev_run=1",
    ]


@pytest.mark.parametrize("name", SMOLLM2)
def test_smollm2_yamls_build_and_train_a_step(name, small_llama):
    coders = name == "sae_smollm2"
    kind = (SparseAutoencoder, ActivationData) if coders else ()
    flags = [f"--config={name}.yaml", *small_llama, *SMOLLM2[name]]
    if not coders:
        flags.append("--model.calibration_tokens=64")
    cli = TrainCLI(CODER_CALLBACKS if coders else CALLBACKS, flags, *kind)
    cli.fit()
    assert cli.trainer.global_step == 1
    if not coders:
        modules = routed_modules(cli.model.net)
        assert list(modules) == (["L1.mlp"] if name.endswith("stock") else ["L0.mlp", "L1.mlp"])
        trained = {name for name, p in cli.model.net.named_parameters() if p.requires_grad}
        assert trained and all(".mlp." in name for name in trained)


def test_the_sizes_of_the_scaling_suite():
    base = yaml.safe_load((ROOT / "configs" / f"{STORIES}.yaml").read_text())["model"]["base"]
    shapes = [BaseConfig(**base | {"d_model": width, "n_heads": width // 4}) for width in WIDTHS]
    sizes = [sum(p.numel() for p in init_base(shape).parameters()) for shape in shapes]
    assert sizes == pytest.approx([0.09e6, 0.23e6, 0.42e6, 0.66e6, 1.28e6, 3.13e6], rel=0.05)


@pytest.mark.parametrize("args", [["--list"], ["--list", "--name", "x"]])
def test_list_names_every_config_and_fits_the_terminal(args, capsys, monkeypatch):
    import train

    monkeypatch.setenv("COLUMNS", "80")
    train.main(args)
    lines = capsys.readouterr().out.splitlines()
    names = sorted(path.name for path in (Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
    assert [line.split()[0] for line in lines if line[0] != " "] == names
    assert all(len(line) <= 80 for line in lines)
