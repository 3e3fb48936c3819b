"""Runs GGUF files in llama.cpp where it is installed: logits, tokens, and the time of prompts and of single tokens.

Two ways lead there: `llama-cpp-py-sync` (its library in this process), and a `llama-bench` on the PATH (times only).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

INSTALL = "pip install llama-cpp-py-sync"


class Times(NamedTuple):
    """The speed of a GGUF file on given threads."""

    prompt: float
    """tokens/s of a prompt"""
    decode: float
    """tokens/s, one at a time"""
    command: str
    build: str


def absent(times_only: bool = False) -> str | None:
    """Say why llama.cpp cannot be used here; None if it can.

    times_only: whether a `llama-bench` is enough.
    """
    if times_only and shutil.which("llama-bench"):
        return None
    try:
        _library()
    except ImportError:
        return f"llama.cpp is not installed: {INSTALL}" + (" (or put llama-bench on the PATH)" if times_only else "")
    except (RuntimeError, OSError) as error:  # built for another system, as for a newer C library
        return _why_not(str(error))
    return None


def _why_not(said: str) -> str:
    """Say why the library cannot be loaded, from the loader's message, which repeats its path three times."""
    if missing := re.findall(r"`GLIBC_([\d.]+)' not found", said):
        needed = max(missing, key=lambda version: [int(part) for part in version.split(".")])
        return f"llama.cpp's library needs glibc {needed}, and {platform.libc_ver()[1] or 'another C library'} is here"
    return f"llama.cpp's library cannot be loaded: {said.splitlines()[0].partition('  Additionally')[0]}"


def _library() -> tuple[Any, Any, ModuleType]:
    import llama_cpp_py_sync
    from llama_cpp_py_sync import _cffi_bindings as bindings

    return bindings.get_ffi(), bindings.get_lib(), llama_cpp_py_sync


def build() -> str:
    """Return which llama.cpp the library is, and for which processor features it was built."""
    ffi, lib, package = _library()
    version = importlib.metadata.version("llama-cpp-py-sync")
    system = ffi.string(lib.llama_print_system_info()).decode()
    return f"llama.cpp of {package.__name__} {version}; {system.strip(' |')}"


class Engine:
    """A GGUF file opened by llama.cpp's library on the CPU; close it, or use it in a `with`."""

    def __init__(self, file: str | Path, threads: int = 1, context: int = 1024, exact: bool = False):
        """Open `file` for sequences of at most `context` tokens.

        exact: compute attention in fp32 throughout, not with keys and values in fp16 as llama.cpp does unless asked.
        Raises ValueError if llama.cpp refuses the file.
        """
        self.ffi, self.lib, _ = _library()
        self.model = self.context = self.ffi.NULL
        self.lib.llama_backend_init()
        with _quiet():
            how = self.lib.llama_model_default_params()
            how.n_gpu_layers = 0
            self.model = self.lib.llama_model_load_from_file(os.fsencode(file), how)
            if self.model == self.ffi.NULL:
                raise ValueError(f"{file}: llama.cpp cannot load this file.")
            settings = self.lib.llama_context_default_params()
            settings.n_ctx = settings.n_batch = settings.n_ubatch = context
            settings.n_threads = settings.n_threads_batch = threads
            if exact:
                settings.type_k = settings.type_v = self.lib.GGML_TYPE_F32
                settings.flash_attn_type = self.lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self.context = self.lib.llama_init_from_model(self.model, settings)
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.n_vocab = self.lib.llama_vocab_n_tokens(self.vocab)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Return the token ids of a text; special: with the token that begins a text, if the model has one."""
        raw = text.encode()
        ids = self.ffi.new("llama_token[]", len(raw) + 8)
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), ids, len(raw) + 8, special, False)
        return list(ids[0:n])

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits [t, v] of a sequence."""
        self._clear()
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, True
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            self._decode(batch)
            raw = self.ffi.buffer(self.lib.llama_get_logits(self.context), 4 * len(ids) * self.n_vocab)
            return torch.from_numpy(np.frombuffer(bytes(raw), dtype=np.float32).copy()).view(len(ids), self.n_vocab)
        finally:
            self.lib.llama_batch_free(batch)

    def prompt_seconds(self, ids: Sequence[int]) -> float:
        """Return the time of one pass over a prompt, with the logits of its last token."""
        self._clear()
        started = time.perf_counter()
        self._push(ids)
        return time.perf_counter() - started

    def decode_seconds(self, ids: Sequence[int]) -> list[float]:
        """Return the time of each step when a sequence is read token by token from an empty cache."""
        self._clear()
        times = []
        for token in ids:
            started = time.perf_counter()
            self._push([token])
            times.append(time.perf_counter() - started)
        return times

    def _push(self, ids: Sequence[int]) -> None:
        tokens = self.ffi.new("llama_token[]", [int(token) for token in ids])
        self._decode(self.lib.llama_batch_get_one(tokens, len(ids)))

    def _decode(self, batch: Any) -> None:
        code = self.lib.llama_decode(self.context, batch)
        assert code == 0, code
        self.lib.llama_synchronize(self.context)

    def _clear(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)


def in_turns(
    files: Sequence[str | Path], threads: int = 1, prompt: int = 256, tokens: int = 32, rounds: int = 5
) -> list[Times]:
    """Time several GGUF files in turns, so that a busy machine disturbs them alike.

    The best prompt and the 20th percentile of all steps count.

    threads: threads of each; prompt: tokens of a prompt; tokens: tokens of a decode from an empty cache.
    Uses the library where it can be loaded, else llama-bench. Raises ValueError if there is neither.
    """
    if (why := absent(times_only=True)) is not None:
        raise ValueError(why)
    if absent() is not None:
        return _bench(files, threads, prompt, tokens, rounds)
    made = build()
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(Engine(file, threads, max(prompt, tokens) + 8)) for file in files]
        ids = [np.random.default_rng(0).integers(3, e.n_vocab, max(prompt, tokens)).tolist() for e in engines]
        prompts: list[list[float]] = [[] for _ in engines]
        steps: list[list[float]] = [[] for _ in engines]
        for _ in range(rounds):
            for i, engine in enumerate(engines):
                prompts[i].append(engine.prompt_seconds(ids[i][:prompt]))
                steps[i] += engine.decode_seconds(ids[i][:tokens])[1:]  # the first step builds the graph
    how = f"llama_decode of {prompt} tokens, and of {tokens} one by one; {threads} threads, {rounds} rounds in turns"
    return [
        Times(prompt / min(p), 1 / float(np.quantile(s, 0.2)), f"{how}; {Path(file).name}", made)
        for file, p, s in zip(files, prompts, steps, strict=True)
    ]


def _bench(files: Sequence[str | Path], threads: int, prompt: int, tokens: int, rounds: int) -> list[Times]:
    best = [Times(0.0, 0.0, "", "")] * len(files)
    for _ in range(rounds):
        for i, file in enumerate(files):
            command = ["llama-bench", "-m", str(file), "-t", str(threads), "-p", str(prompt), "-n", str(tokens)]
            command += ["-r", "1", "-ngl", "0", "-o", "json"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise ValueError(f"{shlex.join(command)}: {said}")
            rows = json.loads(done.stdout)
            speed = {bool(row["n_gen"]): float(row["avg_ts"]) for row in rows}
            made = f"llama.cpp b{rows[0]['build_number']} ({rows[0]['build_commit']})"
            prompt_speed, decode_speed = max(best[i].prompt, speed[False]), max(best[i].decode, speed[True])
            best[i] = Times(prompt_speed, decode_speed, shlex.join(command), made)
    return best


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence llama.cpp's own log, which it writes to stderr while it loads a model."""
    ffi, lib, _ = _library()
    silent = ffi.callback("void(enum ggml_log_level, const char *, void *)", lambda *_: None)
    lib.llama_log_set(silent, ffi.NULL)
    _CALLBACKS.append(silent)  # the library keeps the pointer
    yield


_CALLBACKS: list[Any] = []
