"""The real commands refuse, in one line, files that try to run code, reach other files or fill the memory."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

import eval as evaluation
import slms
import train
from slms.data.probe_tasks import read_tasks
from slms.models.source import EMBEDDED

BASE = [
    "--model.base.source=embedded",
    "--trainer.accelerator=cpu",
    "--data.val_tokens=1024",
    "--data.train_tokens=2048",
]


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """A directory of its own to work in; `proof` appears there if code was run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    yield
    assert not (tmp_path / "proof").exists(), "code from a file was run"


def refused(main, args: list[str], capsys) -> str:
    """The one line on stderr."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Seed set", "reading "))]  # progress, where time is short
    assert len(lines) == 1, lines
    return lines[0]


class Evil:
    """Pickles to a call that leaves the proof."""

    def __reduce__(self):
        return (open, (str(Path("proof").absolute()), "w"))


TAGS = [
    "!!python/object/apply:os.system ['touch proof']",
    "!!python/object/new:os.system ['touch proof']",
    "!!python/name:os.system",
    "!!python/object/apply:builtins.open ['proof', 'w']",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_tags_in_a_training_config(tag, capsys):
    Path("evil.yaml").write_text(f"model:\n  base: {{name: stories-1m}}\nname: {tag}\n")
    line = refused(train.main, ["--config=evil.yaml", *BASE], capsys)
    assert "evil.yaml" in line or "python/" in line


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_tags_in_the_config_of_a_run(tag, capsys):
    Path("run/model").mkdir(parents=True)
    Path("run/config.yaml").write_text(f"model: {tag}\ndata: {{}}\n")
    assert "not the config.yaml of a run" in refused(evaluation.main, ["perplexity", "run"], capsys)


def model_directory(name: str = "m", **config) -> Path:
    """The embedded model, its configuration changed."""
    place = Path(name)
    model, tokenizer = slms.load_base("stories-1m")
    slms.save_model(model, tokenizer, place)
    stored = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(stored | config))
    (place / "evil.py").write_text("open('proof', 'w')\n" * 2)
    return place


def test_a_model_that_needs_code_of_its_own_is_refused(capsys):
    place = model_directory(model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    line = refused(evaluation.main, ["perplexity", str(place.absolute())], capsys)
    assert "it brings its own code, which is never run" in line


def test_code_beside_a_known_model_is_left_alone(caplog):
    place = model_directory(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    model, _ = slms.load_model(place)
    assert type(model).__module__.startswith("transformers.")
    assert "brings code of its own (auto_map), which is not run" in caplog.text


def test_a_kernel_of_the_hub_is_not_fetched(capsys):
    place = model_directory(attn_implementation="someone/evil-kernel")
    assert "someone/evil-kernel" in refused(evaluation.main, ["perplexity", str(place.absolute())], capsys)


def test_weights_elsewhere_are_not_read(capsys):
    place = model_directory()
    os.rename(place / "model.safetensors", "secret.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../secret.safetensors"}}))
    line = refused(evaluation.main, ["perplexity", str(place.absolute())], capsys)
    assert "weights must lie in the model's own directory" in line


def test_pickled_weights_with_code(capsys):
    place = model_directory()
    (place / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Evil()}, place / "pytorch_model.bin")
    line = refused(evaluation.main, ["perplexity", str(place.absolute())], capsys)
    assert "its pickled weights hold more than tensors" in line


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_checkpoint_with_code(how, capsys):
    Path("run/checkpoints").mkdir(parents=True)
    file = Path("run/checkpoints/last.ckpt")
    if how == "torch":
        torch.save({"state_dict": {}, "callbacks": Evil()}, file)
    else:
        file.write_bytes(pickle.dumps(Evil()))
    line = refused(train.main, ["--config=routed_tinystories.yaml", *BASE, "--ckpt_path=run"], capsys)
    assert "pickled code" in line or "damaged" in line


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "a/b", "..", ".hidden", ""])
def test_a_run_stays_in_its_output_directory(name, capsys):
    Path("c.yaml").write_text(
        f"name: {json.dumps(name)}\nmodel: {{base: {{name: stories-1m}}}}\n"
        "data: {corpus: {name: stories}}\ntrainer: {max_epochs: 1}\n"
        "output_dir: runs\n"
    )
    assert "must be one file name" in refused(train.main, ["--config=c.yaml", *BASE[1:]], capsys)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname.txt", "~/secret.txt", "a/../../secret.txt"])
def test_a_manifest_reads_no_file_elsewhere(name):
    row = {"task_id": "t", "source": {"type": "dataset", "name": name, "num_docs": 1}}
    Path("m.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"m\.jsonl:1: source\.name is .* a file below the manifest or"):
        read_tasks("m.jsonl")


@pytest.mark.parametrize(
    "name", ["../../elsewhere", "/tmp/elsewhere", "a/b", "..", ".hidden", "a\\b", "x" * 300, "a\x00"]
)
def test_a_task_s_name_leads_nowhere(name, capsys):
    row = {"task_id": name, "source": {"type": "prompt", "text": "Once upon a time"}}
    Path("m.jsonl").write_text(json.dumps(row))
    line = refused(evaluation.main, ["capture", "stories-1m", "--probe_manifest=m.jsonl"], capsys)
    assert "m.jsonl:1: task_id is " in line and not Path("artifacts").exists()


def test_a_manifest_cannot_ask_for_more_than_memory_holds():
    row = {"task_id": "t", "source": {"type": "prompt", "text": "a"}, "repeat": 10**15}
    Path("m.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"m\.jsonl:1: repeat is 1,000,000,000,000,000; it must be at most 1,000,000"):
        read_tasks("m.jsonl")


@pytest.mark.parametrize("name", ["c.txt", "c.jsonl"])
def test_a_line_of_two_gigabytes_ends_a_command_in_one_line(name, capsys):
    with Path(name).open("wb") as file:
        file.truncate(2 << 30)
    line = refused(evaluation.main, ["perplexity", "stories-1m", f"--corpus={name}"], capsys)
    assert f"{name}:1: a line of more than 16,777,216 characters" in line


def test_invalid_utf8_ends_a_command_in_one_line(capsys):
    Path("c.txt").write_bytes(b"Once upon a time\n\n\xff\xfe there was\n")
    line = refused(evaluation.main, ["perplexity", "stories-1m", "--corpus=c.txt"], capsys)
    assert "c.txt: not UTF-8 text" in line


def test_the_embedded_assets_hold_no_code():
    for place in EMBEDDED.values():
        assert not list(place.glob("*.py")) and not list(place.glob("*.bin")), place
