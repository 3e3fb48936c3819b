"""Looks up in seconds what a run finds on this machine: system, kernels, hub, cache. `pip check` checks versions."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from packaging.version import Version

from slms.files import CONFIGS, cache_dir
from slms.models.hub import cached_snapshot
from slms.network import hub_trouble

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"  # of a checkout, a link to the file at its top
HUB_TIMEOUT_S = 2.0  # half as long as a run waits, so that the whole report takes less than 5 s
MAIN = ("torch", "lightning", "transformers")
PATHWAYS, DENSITY = 16, 0.25
SHAPES = {"stories-1m": (64, 256, False), "pythia-410m": (1024, 4096, False), "llama-8b": (4096, 14336, True)}
"""d_model, d_ff and whether it is gated, for one MLP of each model."""
CALLS = {"one token": (1, False), "prompt of 256": (256, False), "training on 4096": (4096, True)}
"""The tokens of a call, and whether it also runs backward."""


@dataclass(frozen=True)
class Newer:
    """An installed package that is newer than the version with which slms was tested."""

    name: str
    installed: str
    tested: str


@dataclass(frozen=True)
class Kernel:
    """The backend that runs a routed MLP of one shape in one kind of call."""

    model: str
    call: str
    backend: str
    expected: str
    """expected time of each backend that was considered"""
    source: str
    """where these times come from: calibrated here, or estimated"""


@dataclass(frozen=True)
class Cache:
    """What this machine keeps so that it need not be made or fetched again."""

    directory: str
    block_files: int
    bytes: int
    calibrations: int
    """number of shapes for which the kernels' dispatcher was calibrated here"""
    bases: dict[str, bool]
    """hub base of a config → whether the hub's own cache holds all of it"""


@dataclass(frozen=True)
class Environment:
    """All that was looked up."""

    slms: str
    system: dict[str, str]
    """what `torch.utils.collect_env` tells of Python, system, processor, GPUs and their driver; PyTorch's threads"""
    newer: list[Newer]
    """packages newer than tested, among those that slms requires and those that come with them"""
    kernels: list[Kernel]
    hub: str
    """`answers in … s`, or why it does not"""
    cache: Cache
    seconds: float
    """seconds that the look-up took"""


def look() -> Environment:
    """Look at this machine. The hub is asked while PyTorch is imported, and waited for at most HUB_TIMEOUT_S."""
    import slms

    started = time.monotonic()
    bases = hub_bases()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask_hub, bases[0] if bases else "gpt2")
        system, ahead, kernels, hub = look_at_system(), newer(constraints()), look_at_kernels(), answer.result()
    cache = look_at_cache(bases)
    return Environment(slms.__version__, system, ahead, kernels, hub, cache, round(time.monotonic() - started, 2))


def constraints() -> dict[str, str]:
    """Package → version in constraints.txt, the set with which the tests run."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return dict(line.partition(";")[0].split("==") for line in lines if line and not line.startswith("#"))


def newer(versions: Mapping[str, str]) -> list[Newer]:
    """The packages whose installed release is later than in `versions`; a build of a release (`+cpu`) is not later.

    >>> newer({"torch": "0.1", "no-such-package": "1"})[0].name
    'torch'
    """
    found = [Newer(name, installed, tested) for name, tested in versions.items() if (installed := _installed(name))]
    return [p for p in found if Version(Version(p.installed).public) > Version(p.tested)]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def look_at_system() -> dict[str, str]:
    """The parts of PyTorch's own report that matter for a run, without its list of packages, which takes a second."""
    import torch
    from torch.utils import collect_env

    run = collect_env.run
    cpu = collect_env.get_cpu_info(run)
    found = {
        "python": platform.python_version(),
        **{name: _installed(name) for name in MAIN},
        "system": collect_env.get_os(run),
        "processor": next((x.partition(":")[2].strip() for x in cpu.splitlines() if "odel name" in x), cpu),
        "threads": f"{torch.get_num_threads()} of PyTorch on {os.cpu_count()} cores",
        "gpus": collect_env.get_gpu_info(run),
        "driver": collect_env.get_nvidia_driver_version(run),
        "cuda": torch.version.cuda,
    }
    return {name: value for name, value in found.items() if value}


def look_at_kernels() -> list[Kernel]:
    """The backends that `auto` would choose for typical models and calls, at 4 of 16 pathways."""
    import torch

    from slms.kernels import explain

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    made = []
    for model, (d_model, d_ff, gated) in SHAPES.items():
        offsets = range(0, d_ff + 1, d_ff // PATHWAYS)
        for call, (n, training) in CALLS.items():
            line = explain(n, d_model, offsets, DENSITY, gated=gated, training=training, dtype=dtype, device=device)
            expected, _, source = line.partition(": ")[2].partition(" (")
            made.append(Kernel(model, call, line.split(" for ")[0], expected, source.rstrip(")")))
    return made


def hub_bases() -> list[str]:
    """The hub ids of base models that the configs name."""
    names = []
    for path in sorted(CONFIGS.glob("*.yaml")):
        model = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("model") or {}
        base = model.get("base") or {}
        name = base.get("hub") or base.get("name") if isinstance(base, dict) else base
        if isinstance(name, str) and "/" in name:
            names.append(name)
    return list(dict.fromkeys(names))


def ask_hub(repo: str, timeout_s: float = HUB_TIMEOUT_S) -> str:
    """Ask whether the hub answers, and how fast."""
    started = time.monotonic()
    try:
        trouble = hub_trouble(repo, timeout_s=timeout_s)
    except ValueError as error:  # it answers, but has no such repository
        return f"answers in {time.monotonic() - started:.1f} s: {error}"
    return trouble or f"answers in {time.monotonic() - started:.1f} s"


def look_at_cache(bases: list[str]) -> Cache:
    """Count the token blocks, kernel calibrations and hub models that need not be made or fetched again."""
    from slms.kernels.costs import load_table

    place = cache_dir()
    blocks = [file.stat().st_size for file in place.glob("blocks/*.npz")]
    held = {name: cached_snapshot(name) is not None for name in bases}
    return Cache(str(place), len(blocks), sum(blocks), len(load_table()), held)
