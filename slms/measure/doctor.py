"""What a run finds on this machine: packages, devices, kernels, hub and cache, looked up in seconds."""

import importlib.metadata
import platform
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from slms.files import cache_dir
from slms.models.hub import cached_snapshot
from slms.network import hub_trouble

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"  # of a checkout, a link to the file at its top
HUB_TIMEOUT_S = 2.0  # half of what a run waits, so that the whole report comes in under 5 s
PATHWAYS, DENSITY = 16, 0.25
SHAPES = {"stories-1m": (64, 256, False), "pythia-410m": (1024, 4096, False), "llama-8b": (4096, 14336, True)}
"""d_model, d_ff and whether gated, of one MLP."""
CALLS = {"one token": (1, False), "prompt of 256": (256, False), "training on 4096": (4096, True)}
"""Tokens of a call and whether it also goes backward."""


@dataclass(frozen=True)
class Package:
    """An installed or missing package."""

    name: str
    installed: str | None
    wanted: str
    extra: str | None
    """The optional part of slms that asks for it; None where slms itself does."""
    fits: bool


@dataclass(frozen=True)
class Newer:
    """An installed package that is newer than the one that slms was tested with."""

    name: str
    installed: str
    tested: str


@dataclass(frozen=True)
class Kernel:
    """What runs one routed MLP of a shape in one kind of call."""

    model: str
    call: str
    backend: str
    expected: str
    """time of each backend weighed"""
    source: str
    """whether these times were calibrated here"""


@dataclass(frozen=True)
class Cache:
    """What is kept on this machine so that it is not made or fetched again."""

    directory: str
    block_files: int
    bytes: int
    calibrations: int
    """shapes that the kernels' dispatcher has been calibrated for here"""
    bases: dict[str, bool]
    """hub base of a config → whether the hub's own cache holds it whole"""


@dataclass(frozen=True)
class Environment:
    """All of it."""

    slms: str
    python: str
    system: str
    packages: list[Package]
    newer: list[Newer]
    """than tested, those that slms asks for and those that come with them"""
    devices: list[str]
    kernels: list[Kernel]
    hub: str
    """`answers in … s`, or why it does not"""
    cache: Cache
    seconds: float
    """that the look took"""


def look() -> Environment:
    """Look at this machine; the hub is asked while PyTorch is imported, and waited for HUB_TIMEOUT_S at most."""
    import slms

    started = time.monotonic()
    bases = hub_bases()
    with ThreadPoolExecutor(1) as pool:
        asked: Future[str] = pool.submit(ask_hub, bases[0] if bases else "gpt2")
        found, ahead = packages(requirements()), newer(constraints())
        devices, kernels = look_at_devices(), look_at_kernels()
        hub = asked.result()
    return Environment(
        slms=slms.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=found,
        newer=ahead,
        devices=devices,
        kernels=kernels,
        hub=hub,
        cache=look_at_cache(bases),
        seconds=round(time.monotonic() - started, 2),
    )


def requirements() -> list[str]:
    """What slms asks for, as in its metadata; of a checkout that is not installed, as in its pyproject.toml."""
    file = ROOT / "pyproject.toml"
    if not file.is_file():
        return importlib.metadata.requires("slms") or []
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    optional = [
        f"{line.partition(';')[0].strip()}; extra == '{extra}'"
        for extra, lines in project.get("optional-dependencies", {}).items()
        for line in lines
    ]
    return [*project["dependencies"], *optional]


def packages(wanted: Iterable[str]) -> list[Package]:
    """Each requirement beside what is installed, once for all extras; those of other platforms are left out.

    >>> packages(["no-such-package>=2; extra == 'more'"])
    [Package(name='no-such-package', installed=None, wanted='>=2', extra='more', fits=False)]
    """
    found: dict[tuple[str, str, bool], Package] = {}
    for line in wanted:
        need = Requirement(line)
        extra = _extra(need)
        if need.marker is not None and not need.marker.evaluate({"extra": extra or ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        fits = version is not None and need.specifier.contains(version, prereleases=True)
        key = (need.name, str(need.specifier), extra is None)
        extras = ", ".join(filter(None, (found[key].extra if key in found else None, extra)))
        found[key] = Package(need.name, version, str(need.specifier), extras or None, fits)
    return list(found.values())


def constraints() -> dict[str, str]:
    """Package → version of constraints.txt, the set that the tests run on."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return dict(line.partition(";")[0].split("==") for line in lines if line and not line.startswith("#"))


def newer(versions: dict[str, str]) -> list[Newer]:
    """The packages that are installed in a later release than `versions` has; a build of a release (`+cpu`) is none.

    >>> newer({"torch": "0.1", "no-such-package": "1"})[0].name
    'torch'
    """
    found = []
    for name, version in versions.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(Version(installed).public) > Version(version):
            found.append(Newer(name, installed, version))
    return found


def _extra(need: Requirement) -> str | None:
    marker = str(need.marker or "")
    return marker.partition("extra == ")[2].split()[0].strip("\"')") if "extra == " in marker else None


def look_at_devices() -> list[str]:
    """One line a device, the one that runs use by default first."""
    import torch

    from slms.report.provenance import hardware

    cpu = hardware("cpu")
    lines = [f"cpu: {cpu['processor']}, {cpu['cores']} cores, PyTorch threads: {cpu['threads']}"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(index)
            lines.insert(index, f"cuda:{index}: {p.name}, {p.total_memory / 2**30:.0f} GiB, {p.major}.{p.minor}")
    elif torch.backends.mps.is_available():
        lines.insert(0, "mps: Apple GPU")
    return lines


def look_at_kernels() -> list[Kernel]:
    """Which backend `auto` would choose for typical models and calls, at 4 of 16 pathways."""
    import torch

    from kernels import explain

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
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        model = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("model") or {}
        base = model.get("base") or {}
        name = base.get("hub") or base.get("name") if isinstance(base, dict) else base
        if isinstance(name, str) and "/" in name:
            names.append(name)
    return list(dict.fromkeys(names))


def ask_hub(repo: str, timeout_s: float = HUB_TIMEOUT_S) -> str:
    """Whether the hub answers, and how fast."""
    started = time.monotonic()
    try:
        trouble = hub_trouble(repo, timeout_s=timeout_s)
    except ValueError as error:  # it answers, but knows no such repository
        return f"answers in {time.monotonic() - started:.1f} s: {error}"
    return trouble or f"answers in {time.monotonic() - started:.1f} s"


def look_at_cache(bases: list[str]) -> Cache:
    """Token blocks, kernel calibrations and hub models that need not be made or fetched again."""
    from kernels.costs import load_table

    place = cache_dir()
    blocks = [file.stat().st_size for file in place.glob("blocks/*.npz")]
    held = {name: cached_snapshot(name) is not None for name in bases}
    return Cache(str(place), len(blocks), sum(blocks), len(load_table()), held)


def is_complete(environment: Environment) -> bool:
    """Whether every package that slms itself needs is there in a version that fits."""
    return all(package.fits for package in environment.packages if package.extra is None)
