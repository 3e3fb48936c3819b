"""A user's mistake gives one line on stderr that names it and exit code 2; nothing is written, nothing lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM

import eval as evaluation
import slms
import train
from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.export import Provenance, save

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = [
    "--config=routed_tinystories.yaml",
    "--model.base.source=embedded",
    "--data.block_size=64",
    "--data.train_tokens=4096",
    "--data.epoch_tokens=4096",
    "--data.val_tokens=4096",
    "--data.batch_size=4",
    "--trainer.max_epochs=1",
    "--model.calibration_tokens=1024",
    "--trainer.accelerator=cpu",
]


@pytest.fixture(autouse=True)
def _command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])


def refused(main, args: list[str], capsys) -> str:
    """The one line that a refused command writes to stderr."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Seed set", "reading "))]  # progress, where time is short
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--model.routing.kk=3"], ["kk"]),
        (["--model.routing.k=x"], ["--model.routing.k x: it must be a whole number"]),
        (["--model.routing.first_layer=null"], ["routing.first_layer", "null", "whole number"]),
        (["--model.optimizer.lr=1" + "0" * 400], ["too large"]),
        (["--model.routing.k=33"], ["routing.k", "33", "routing.n_pathways", "32"]),
        (["--model.routing.n_pathways=300", "--model.routing.k=4"], ["n_pathways", "300", "256"]),
        (["--model.routing.layers=[9]"], ["routing.layers", "[9]", "0 to 7"]),
        (["--model.routing.gate=soft"], ["gate", "soft"]),
        (["--model.optimizer.lr=-1"], ["model.optimizer.lr", "-1"]),
        (["--data.block_size=4096"], ["data.block_size", "4096", "2048"]),
        (["--data.batch_size=999"], ["data.batch_size", "999"]),
        (["--data.corpus.name=nowhere.txt"], ["nowhere.txt", "no such file"]),
        (["--model.base.name=./nowhere"], ["nowhere"]),
        (["--data.corpus.name="], ["--data.corpus.name is empty"]),
        (["--ckpt_path=nowhere.ckpt"], ["--ckpt_path", "nowhere.ckpt", "no such checkpoint"]),
        (["--config=nowhere.yaml"], ["nowhere.yaml", "routed_tinystories.yaml"]),
        (["--model.base.source=hub"], ["TinyStories-1M", "HF_HUB_OFFLINE"]),
    ],
    ids=lambda v: v[0] if isinstance(v, list) and v[0].startswith("--") else "",
)
def test_train_refuses_in_one_line_and_writes_nothing(flags, names, tmp_path, capsys):
    line = refused(train.main, [*EMBEDDED, f"--output_dir={tmp_path / 'runs'}", *flags], capsys)
    assert line.startswith("train.py: error: ")
    assert all(name in line for name in names), line
    assert not (tmp_path / "runs").exists()


def test_a_truncated_checkpoint_costs_nothing(tmp_path, capsys):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save({"state_dict": {}}, checkpoints / "last.ckpt")
    whole = (checkpoints / "last.ckpt").read_bytes()
    (checkpoints / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    line = refused(train.main, [*EMBEDDED, f"--ckpt_path={tmp_path / 'run'}"], capsys)
    assert "truncated or damaged" in line
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == ["checkpoints", "last.ckpt"]


def test_a_corpus_without_text_is_refused(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n\n")
    line = refused(train.main, [*EMBEDDED, f"--data.corpus.name={tmp_path / 'empty.txt'}"], capsys)
    assert "empty.txt" in line and "less than one block" in line


def test_a_model_without_known_mlps_prints_the_adapters(tmp_path, capsys):
    BloomForCausalLM(BloomConfig(vocab_size=2048, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "m")
    capsys.readouterr()
    flags = [f"--model.base.name={tmp_path / 'm'}", "--model.base.tokenizer=stories-1m"]
    line = refused(train.main, [*EMBEDDED[:1], *EMBEDDED[2:], *flags, "--data.corpus.name=stories"], capsys)
    assert "Bloom" in line and "gpt_neox" in line and "llama" in line
    slms.load_base("stories-1m").tokenizer.save_pretrained(tmp_path / "m")
    capsys.readouterr()
    for command in ("layers", "capture", "sparsity", "specialization", "ablation", "suite"):
        named = ["--models", str(tmp_path / "m")] if command == "suite" else [str(tmp_path / "m")]
        line = refused(evaluation.main, [command, *named, f"--output_dir={tmp_path / 'a'}"], capsys)
        assert "bloom" in line and "gpt_neox" in line and "llama" in line
    assert not (tmp_path / "a").exists()


def test_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    flags = [
        f"--output_dir={tmp_path}",
        "--name=nan",
        "--checkpoint.every_n_train_steps=2",
        "--model.optimizer.lr=1e30",
        "--trainer.gradient_clip_val=null",
    ]
    line = refused(train.main, [*EMBEDDED, *flags], capsys)
    assert "it must be finite" in line and "last good checkpoint" in line and "Blocks of the batch" in line
    (run,) = (tmp_path / "nan").iterdir()
    assert not (run / "llm_routing_results.json").exists()


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ([], ["layers, perplexity", "doctor"]),
        (["perplexity", "./nowhere"], ["nowhere"]),
        (["perplexity", "stories-1m", "--corpus=nowhere.jsonl"], ["nowhere.jsonl"]),
        (["perplexity", "stories-1m", "--block_size=9999"], ["--block_size", "9999", "2048"]),
        (["perplexity", "stories-1m", "--split=dev"], ["split", "dev"]),
        (["pathways", "stories-1m", "--n_tokens=512"], ["stories-1m", "dense"]),
        (["compare", "./nowhere", "./elsewhere"], ["nowhere"]),
        (["perplexityy"], ["perplexityy"]),
    ],
    ids=lambda v: " ".join(v[:3]),
)
def test_eval_refuses_in_one_line(args, names, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(evaluation.main, args, capsys)
    assert ": error: " in line
    assert all(name in line for name in names), line
    assert not (tmp_path / "artifacts").exists()


CODERS = [
    "--config=sae_tinystories.yaml",
    "--model.base.source=embedded",
    "--data.block_size=64",
    "--data.train_tokens=4096",
    "--data.epoch_tokens=4096",
    "--data.val_tokens=4096",
    "--data.buffer.batch_size=64",
    "--data.buffer.chunk_tokens=1024",
    "--trainer.accelerator=cpu",
]


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--model.coders=[{site: residual.9}]"], ["'residual.9'", "not in this model", "residual.7"]),
        (["--model.coders=[{site: mlp_in.3, target: mlp_out.33}]"], ["'mlp_out.33'", "mlp_out.3"]),
        (["--model.coders=[{site: residual.3, coder: {k: 2000}}]"], ["coder.k", "2000", "1024 latents"]),
        (["--model.coders=[{site: residual.3, coder: {d_sae: 0}}]"], ["coder.d_sae", "0", "at least 1"]),
        (["--model.coders=[{site: residual.3, coder: {kind: top_k}}]"], ["kind", "top_k"]),
        (["--model.coders=[]"], ["model.coders", "at least one"]),
        (["--data.buffer.batch_size=2048"], ["data.buffer.batch_size", "2048", "1024"]),
    ],
    ids=lambda v: v[0] if isinstance(v, list) and v[0].startswith("--") else "",
)
def test_a_coder_that_cannot_be_trained_is_refused(flags, names, tmp_path, capsys):
    line = refused(train.main, [*CODERS, f"--output_dir={tmp_path / 'runs'}", *flags], capsys)
    assert all(name in line for name in names), line
    assert not (tmp_path / "runs").exists()


def test_activations_of_another_model_are_refused(tmp_path, capsys):
    made_from = tmp_path / "cache" / "activations.json"
    made_from.parent.mkdir()
    made_from.write_text('{"model": "0123456789abcdef"}')
    flags = [f"--output_dir={tmp_path / 'runs'}", f"--data.buffer.cache={made_from.parent}"]
    line = refused(train.main, [*CODERS, *flags], capsys)
    assert "data.buffer.cache" in line and str(made_from.parent) in line and "0123456789abcdef" in line
    assert [path.name for path in made_from.parent.iterdir()] == ["activations.json"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        ("tensor", ["sae_weights.safetensors", "'b_enc' is missing"]),
        ("key", ["cfg.json", "'d_sae' is missing"]),
        ("hook", ["blocks.9.hook_resid_post", "no site of this model", "blocks.7.hook_resid_post"]),
        ("width", ["its input has 8 dimensions", "64"]),
        ("directory", ["cfg.json", "no such file"]),
    ],
)
def test_a_coder_that_cannot_be_read_is_refused(damage, names, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layer = 9 if damage == "hook" else 3
    coder = build_coder(CoderConfig(kind="topk", d_sae=32, k=4), 8 if damage == "width" else 64)
    save(coder, Path("coder"), Provenance("stories-1m", f"blocks.{layer}.hook_resid_post", context_size=64))
    config, weights = Path("coder/cfg.json"), Path("coder/sae_weights.safetensors")
    if damage == "tensor":
        save_file({name: t for name, t in load_file(weights).items() if name != "b_enc"}, weights)
    elif damage == "key":
        config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "d_sae"}))
    elif damage == "directory":
        config.unlink()
    line = refused(evaluation.main, ["sae", "coder", "--n_tokens=256"], capsys)
    assert all(name in line for name in names), line
    assert not Path("artifacts").exists()


def test_the_real_process_exits_with_2():
    done = subprocess.run(
        [sys.executable, "train.py", "--config=routed_tinystories.yaml", "--model.routing.k=33"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("train.py: error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("section", "value"), [("data.corpus", [{"name": "stories"}]), ("data", 3), ("model.optimizer", 1), ("trainer", [])]
)
def test_a_section_of_a_config_that_is_no_mapping_is_named(section, value, tmp_path, capsys):
    config = {"model": {"base": {"name": "stories-1m"}}, "data": {"corpus": {"name": "stories"}}}
    *parents, last = section.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    line = refused(train.main, ["--config", str(tmp_path / "c.yaml"), f"--output_dir={tmp_path / 'runs'}"], capsys)
    assert f"{section} is {value}" in line and "mapping" in line
    assert not (tmp_path / "runs").exists()
