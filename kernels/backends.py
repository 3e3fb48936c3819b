"""The implementations of a routed MLP by name, and which of them can run here."""

import ctypes
import functools
import importlib.util
import os
import sys

import torch

BACKENDS = ("auto", "reference", "dense", "grouped", "rows", "amx", "triton")
GPU_TOKENS = 16  # the most of a decoding step: Triton's kernels for few tokens take them, and a tensor core at once
GPU_PATHWAYS = 256  # the most by which tokens are grouped, and of which one program compares each with each
GPU_UNITS = 16384  # the most that one program ranks in registers without spilling
GPU_CAPABILITY = (8, 0)  # the oldest devices for which they were compiled


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@functools.cache
def tile_registers() -> bool:
    """Whether this CPU has AMX for bfloat16, and Linux, which must be asked, lets this process use it."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every supported version
    if sys.platform != "linux" or not (known.get("amx_bf16") and known.get("avx512_bw")):
        return False
    if os.environ.get("NUMBA_CPU_NAME") or os.environ.get("NUMBA_CPU_FEATURES"):  # compiled for another CPU
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


@functools.cache
def pair_products() -> bool:
    """Whether the compiled loops can multiply pairs of bfloat16 at once here (AVX512_BF16), and nothing is faster."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every supported version
    if os.environ.get("NUMBA_CPU_NAME") or os.environ.get("NUMBA_CPU_FEATURES"):  # compiled for another CPU
        return False
    return bool(known.get("avx512_bf16")) and _installed("numba") and not tile_registers()


@functools.cache
def _capability() -> tuple[int, int]:
    """The capability of the oldest CUDA device here; if there is none, one that suffices for what a GPU would run."""
    found = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    return min(found, default=GPU_CAPABILITY)


def refusal(backend: str, device: str, dtype: torch.dtype, n_pathways: int = 1) -> str | None:
    """Why a backend cannot run here, or None if it can."""
    if backend in ("auto", "reference", "dense"):
        return None
    if backend not in BACKENDS:
        return f"it must be one of {', '.join(BACKENDS)}"
    if backend == "triton":
        if not _installed("triton"):
            return "it needs the package triton, which is not installed"
        if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return f"it needs a CUDA device and x is on {device}"
        if device == "cuda" and (found := _capability()) < GPU_CAPABILITY:
            least, oldest = ("{}.{}".format(*version) for version in (GPU_CAPABILITY, found))
            return f"it needs CUDA devices of compute capability {least} or above, and one here has {oldest}"
        if n_pathways > GPU_UNITS:
            return f"it takes up to {GPU_UNITS} pathways or units, and there are {n_pathways}"
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"it knows float32, bfloat16 and float16, and x is {dtype}"
        return None
    if device != "cpu":
        return f"it runs on the CPU and x is on {device}"
    if backend in ("rows", "amx") and not _installed("numba"):
        return "it needs the package numba, which is not installed"
    if backend == "amx":
        if dtype != torch.bfloat16:
            return f"it knows bfloat16, and x is {dtype}"
        if not tile_registers():
            return "it needs a CPU with AMX for bfloat16, and Linux"
    if backend == "rows" and dtype not in (torch.float32, torch.bfloat16):
        return f"it knows float32 and bfloat16, and x is {dtype}"
    return None


# All that torch.compiler.assume_constant_result does; it imports the compiler first, 1.5 s where nothing is compiled.
refusal._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a mark for the compiler


def forget_installed() -> None:
    """Look for packages again, as you need after an installation."""
    _installed.cache_clear()
    _capability.cache_clear()
