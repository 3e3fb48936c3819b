"""Estimates the time of a routed MLP call from this machine's calibration, else from a model fitted on one CPU.

You calibrate explicitly (`kernels.calibrate`), once per machine and shape. A JSON file under `$SLMS_CACHE`, by default
under the user's cache folder, keeps the results. Times are in microseconds.
"""

import functools
import json
import math
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from slms.kernels import backends
from slms.kernels.backends import GPU_PATHWAYS, GPU_TOKENS
from slms.kernels.cache import cache_file
from slms.kernels.cpu import team


class Shape(NamedTuple):
    """The properties of a call for which a calibration holds."""

    d_model: int
    d_ff: int
    n_pathways: int
    gated: bool
    dtype: str
    """as in "float32" """
    device: str
    """"cpu" or "cuda" """
    training: bool
    """whether forward and backward are timed together, or forward alone"""


class Rates(NamedTuple):
    """Speeds of one core, which stand in for those of an uncalibrated machine."""

    matmul: float
    """floating-point operations per µs in a large matrix product"""
    small_matmul: float
    """µs to start one matrix product"""
    loop: float = 115e3
    """floating-point operations per µs in the compiled row loops"""
    memory: float = 12e3
    """bytes read per µs"""
    masking: float = 1.5e-3
    """µs for a neuron of a token where all are computed: activation, mask and products"""


# Measured by `python -m benchmarks.kernels`, one thread, on a Xeon with AMX (torch 2.13); see docs/benchmarks.md.
RATES = {"float32": Rates(130e3, 8.0), "bfloat16": Rates(700e3, 40.0), "float16": Rates(130e3, 40.0)}
NO_TILES = Rates(130e3, 40.0)  # bfloat16 without matrix units: assumed to equal float16, not measured
# An AMD EPYC with AVX2 alone, float32: vectors are half as long, and a tile of the row loops needs twice its registers.
NARROW = Rates(75e3, 12.0, loop=30e3, memory=18e3, masking=4e-3)
TILES = 900e3  # the same on the tile registers, which multiply only bfloat16
TILE_MEMORY = 1.25  # how much longer they take to read weights, 32 rows at a time
TILE_CELL = 1e-3  # µs to gather a number of a token's input and to add one of its output
CELL = 0.05  # extra µs of the row loops for each token and pathway


class Chip(NamedTuple):
    """The assumed speeds of an uncalibrated GPU: rounded figures of one H200, none of them measured with this code."""

    matmul: float = 600e6  # floating-point operations per µs in a large 16-bit product
    matmul_float32: float = 40e6
    grouped_share: float = 0.6  # of a dense product's speed, published for Triton's grouped products
    memory: float = 3e6  # bytes per µs
    launch: float = 5.0  # µs, of an operation of PyTorch
    own_launch: float = 12.0  # µs, of a Triton kernel, called from Python


def estimate_gpu(backend: str, shape: Shape, n_tokens: int, density: float, chip: Chip | None = None) -> float:
    """The expected µs of one call on a GPU without calibration, derived from a roofline and not from a measurement."""
    chip = chip or Chip()
    size = 4 if shape.dtype == "float32" else 2
    matrices = 3 if shape.gated else 2
    weights = matrices * shape.d_model * shape.d_ff
    speed = chip.matmul_float32 if shape.dtype == "float32" else chip.matmul
    passes = 3.0 if shape.training else 1.0
    few = n_tokens <= GPU_TOKENS and not shape.training
    if backend == "dense" or (shape.n_pathways > GPU_PATHWAYS and not few):  # all rows
        # Between the products PyTorch reads or writes [n, f] some eight times, Triton in one pass once for each matrix.
        starts, moved = (
            (4 * chip.launch, 8) if backend == "dense" else (matrices * chip.launch + chip.own_launch, matrices)
        )
        between = n_tokens * shape.d_ff * size * moved / chip.memory
        return passes * (starts + between + max(weights * size / chip.memory, 2 * n_tokens * weights / speed))
    read = 1 - (1 - density) ** n_tokens
    work = density * 2 * n_tokens * weights / (speed * chip.grouped_share)
    # Partial sums of 32 neurons, written and read in float32; or pairs: gathered, written, combined.
    partial = n_tokens * density * shape.d_ff / 32 * shape.d_model * 8
    pairs = n_tokens * density * shape.n_pathways * 3 * shape.d_model * size
    traffic = read * weights * size + (partial if few else pairs)
    passes = passes * 4 / 3 if shape.training else passes
    return passes * ((2 if few else 6) * chip.own_launch + max(traffic / chip.memory, work))


def estimate(backend: str, shape: Shape, n_tokens: int, density: float) -> float:
    """The expected µs of one call without calibration: work, weight traffic and start-up, from the constants above.

    It assumes, without measurement, that threads share work and traffic evenly, but never the start-up.
    """
    if shape.device != "cpu":
        return estimate_gpu(backend, shape, n_tokens, density)
    rates = RATES.get(shape.dtype, RATES["float32"])
    if shape.dtype == "float32" and narrow():
        rates = NARROW
    if shape.dtype == "bfloat16" and not backends.tile_registers():
        rates = NO_TILES
    threads = torch.get_num_threads()
    size = 2 if shape.dtype in ("bfloat16", "float16") else 4
    matrices = 3 if shape.gated else 2
    passes = 3.0 if shape.training else 1.0
    weights = matrices * shape.d_model * shape.d_ff
    if backend in ("dense", "reference"):
        work = 2 * n_tokens * weights / rates.matmul + weights * size / rates.memory
        masking = n_tokens * shape.d_ff * rates.masking
        return passes * (matrices * rates.small_matmul + (work + masking) / threads)
    pairs = n_tokens * shape.n_pathways * density
    read = 1 - (1 - density) ** n_tokens  # share of pathways that some token chose, if choices were independent
    own = team.team_size(read * weights * size)  # threads of the compiled loops
    if backend == "amx":
        passes = 3.5 if shape.training else 1.0  # hidden activations are computed again
        work = density * 2 * n_tokens * weights / TILES + pairs * shape.d_model * TILE_CELL
        return 40 + passes * (TILE_MEMORY * read * weights * size / rates.memory + work) / own
    if backend == "rows":
        passes = 3.5 if shape.training else 1.0  # hidden activations are computed again
        work = read * weights * size / rates.memory + density * 2 * n_tokens * weights / rates.loop
        if shape.training and shape.dtype != "float32":  # the backward pass is that of "grouped"
            return estimate("grouped", shape, n_tokens, density)
        return 25 + passes * (work + CELL * pairs) / own
    blocks = max(1.0, read * shape.n_pathways) * (matrices + 1) * 2 * rates.small_matmul  # and its gather, its sum
    passes = passes * 4 / 3 if shape.training else passes  # hidden activations are computed again
    # A library packs a pathway's weights again for each product, so reading them is not hidden behind the work.
    work = 1.1 * density * 2 * n_tokens * weights / rates.matmul + read * weights * size / rates.memory
    gather = pairs * (0.05 + shape.d_model * 1e-4) + pairs * shape.d_ff / shape.n_pathways * 1.5e-3
    return 40 + passes * (blocks + (work + gather) / threads)


@functools.cache
def narrow() -> bool:
    """Whether this processor's vectors are shorter than 512 bits."""
    return not torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def machine(device: str) -> str:
    """Name what a timing depends on besides the shape: processor, threads, PyTorch."""
    if device == "cuda":
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
        return f"{name} | torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} | {torch.get_num_threads()} threads | torch {torch.__version__}"


def key(shape: Shape) -> str:
    return f"{machine(shape.device)} | {json.dumps(shape)}"


@functools.lru_cache
def _load(path: Path, modified: float) -> dict:
    return json.loads(path.read_text())


def load_table() -> dict[str, list[dict]]:
    """All calibrations of this user; empty if there are none. An unreadable file is an error, not an empty table."""
    try:
        path = cache_file()
    except RuntimeError:  # no home: there are none
        return {}
    return _load(path, path.stat().st_mtime) if path.exists() else {}


def save_measurements(shape: Shape, rows: list[dict]) -> Path:
    """Add one shape's measurements to the file, replacing it in one step. A row has tokens, density, µs by backend."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {**load_table(), key(shape): rows}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(table, indent=1))
    os.replace(temporary, path)
    return path


class Decision(NamedTuple):
    backend: str
    reason: str
    times: dict[str, float]
    """expected µs by backend"""


def cheapest(backends: Iterable[str], shape: Shape, n_tokens: int, density: float) -> Decision:
    """The backend with the least expected time, and that expectation in words."""
    backends = list(backends)
    # Measurements from before a backend existed do not tell whether it would have been faster.
    measured = [row for row in load_table().get(key(shape), []) if set(backends) <= row["us"].keys()]
    if measured:
        row = min(
            measured, key=lambda row: (abs(math.log2(row["tokens"] / max(n_tokens, 1))), abs(row["density"] - density))
        )
        times = {name: row["us"][name] for name in backends}
        source = f"calibrated at {row['tokens']} tokens, density {row['density']:g}"
    else:
        times = {name: estimate(name, shape, n_tokens, density) for name in backends}
        source = "estimated, not calibrated here"
    if torch.get_num_threads() > 1 and times.keys() & {"rows", "amx"} and team.gnu_openmp()[0] is None:
        source += "; rows and amx on one thread: no GNU OpenMP"
    best = min(times, key=times.__getitem__)
    listing = ", ".join(f"{name} {_time(us)}" for name, us in sorted(times.items(), key=lambda item: item[1]))
    return Decision(best, f"{listing} ({source})", times)


def _time(us: float) -> str:
    """Microseconds in the unit that needs the fewest digits.

    >>> _time(1), _time(9116.2), _time(33566829)
    ('1 µs', '9.1 ms', '33.6 s')
    """
    if us < 1e3:
        return f"{us:.0f} µs"
    return f"{us / 1e3:.1f} ms" if us < 1e6 else f"{us / 1e6:.1f} s"
