"""llama.cpp as an engine: what is said where it is absent, and what it computes where it is installed."""

import builtins
import json
import os
import platform
import shutil
import stat

import pytest
import torch

from slms.measure import llama_cpp
from slms.measure.llama_cpp import Engine, absent, in_turns
from tests.models.test_to_gguf import build, byte_level

installed = pytest.mark.skipif(absent() is not None, reason=str(absent()))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    from slms.models.to_gguf import write_gguf

    return write_gguf(build("llama"), byte_level(), tmp_path_factory.mktemp("m") / "m.gguf")


def test_its_absence_has_a_reason(monkeypatch):
    def refuse(name, *args, real=builtins.__import__, **more):
        if name.startswith("llama_cpp_py_sync"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert absent() == "llama.cpp is not installed: pip install llama-cpp-py-sync"
    with pytest.raises(ValueError, match=r"not installed: .*or put llama-bench on the PATH"):
        in_turns(["a.gguf"])


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "cannot load library 'x/libllama.so': libc.so.6: version `GLIBC_2.9' not found "
            "(required by x/libllama.so); version `GLIBC_2.38' not found.  Additionally, ctypes.util did",
            "llama.cpp's library needs glibc 2.38, and 2.36 is here",
        ),
        (
            "x.so: wrong class.  Additionally, ctypes\nmore",
            "llama.cpp's library cannot be loaded: x.so: wrong class.",
        ),
    ],
)
def test_a_library_for_another_system_gets_a_short_line(said, why, monkeypatch):
    def refuse():
        raise RuntimeError(said)

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(llama_cpp, "_library", refuse)
    assert absent() == why


def test_llama_bench_is_run_in_turns_and_its_best_counts(tmp_path, monkeypatch):
    """Through a stand-in that prints the fields that llama-bench prints with `-o json`, slower each time."""
    calls = tmp_path / "calls"
    bench = tmp_path / "llama-bench"
    rows = [{"n_prompt": 64, "n_gen": 0}, {"n_prompt": 0, "n_gen": 8}]
    bench.write_text(
        "#!/usr/bin/env python3\nimport json, sys, pathlib\n"
        f"calls = pathlib.Path({str(calls)!r}); done = calls.read_text() if calls.exists() else ''\n"
        "calls.write_text(done + sys.argv[2] + ' ')\n"
        f"rows = {json.dumps(rows)}\n"
        "for i, row in enumerate(rows): row |= {'avg_ts': 100 * (i + 1) - len(done.split()), 'build_number': 7, "
        "'build_commit': 'abc'}\n"
        "print(json.dumps(rows))\n"
    )
    bench.chmod(bench.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(llama_cpp, "_library", lambda: (_ for _ in ()).throw(ImportError()))
    one, two = in_turns(["a.gguf", "b.gguf"], threads=1, prompt=64, tokens=8, rounds=2)
    assert calls.read_text().split() == ["a.gguf", "b.gguf"] * 2
    assert (one.prompt, one.decode, two.prompt, two.decode) == (100, 200, 99, 199)
    assert one.build == "llama.cpp b7 (abc)" and "llama-bench -m a.gguf -t 1 -p 64 -n 8" in one.command


@installed
def test_logits_and_tokens_are_those_of_the_model(file):
    model, tokenizer = build("llama"), byte_level()
    ids = torch.randint(0, 257, (48,), generator=torch.Generator().manual_seed(0))
    with Engine(file, context=64, exact=True) as engine, torch.no_grad():
        assert (engine.logits(ids.tolist()) - model(ids[None]).logits[0]).abs().max() < 1e-3
        assert engine.tokenize("the cat, thé") == tokenizer("the cat, thé").input_ids


@installed
def test_times_come_with_command_and_build(file):
    one, two = in_turns([file, file], prompt=16, tokens=4, rounds=2)
    assert min(one.prompt, one.decode, two.prompt, two.decode) > 0
    assert "1 threads" in one.command and one.build.startswith("llama.cpp of llama_cpp_py_sync ")


@installed
def test_a_file_that_llama_cpp_refuses_gets_one_line(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"x\.gguf: llama\.cpp cannot load this file"):
        Engine(tmp_path / "x.gguf")
