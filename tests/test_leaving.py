"""The way from `pip install` to llama.cpp in docs/leaving.md, but for its base, which is tiny here."""

import re
import shlex
import sys
import tomllib
from glob import glob
from pathlib import Path

import pytest
import torch
import transformers as hf

import eval as evaluation
import slms
import train
from slms.measure.llama_cpp import INSTALL, absent

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "leaving.md").read_text()
WAY = PAGE.partition("## From pip install to llama.cpp\n")[2].partition("\n## ")[0]
BASE = "--model.base.name=smollm2-135m"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", WAY, flags=re.S)


def test_what_is_installed_is_what_the_package_offers():
    install = blocks("bash")[0]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r"'\.\[(\w+)\]'", install)
    assert named in extras and INSTALL in install


@pytest.mark.skipif(absent() is not None, reason=str(absent()))
def test_the_commands_lead_to_an_answer_of_llama_cpp(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    _, commands = blocks("bash")
    (answer,) = blocks("python")
    tokenizer = slms.load_base("stories-1m").tokenizer
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0}
    slms.save_model(hf.LlamaForCausalLM(hf.LlamaConfig(**shape)), tokenizer, tmp_path / "tiny")
    assert commands.count(BASE) == 1
    commands = commands.replace(BASE, "--model.base.name=./tiny").replace("\\\n", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    programs = {"train.py": train.main, "eval.py": evaluation.main}
    for line in commands.splitlines():
        python, program, *words = shlex.split(line)
        assert python == "python"
        programs[program]([found for word in words for found in (glob(word) if "*" in word else [word])])
    exported = capsys.readouterr().out
    assert re.search(r"llama\.cpp (b\d|of )", exported) and "written to my-gguf" in exported
    (run,) = Path("runs", "leaving").iterdir()
    routing = slms.load_model(run / "model").model.config.routing
    assert (routing["n_pathways"], routing["k"]) == (16, 8)
    exec(compile(answer, "leaving.md", "exec"), {})
    assert len(capsys.readouterr().out) > 10  # of an almost untrained model: full stops and empty lines
