"""Which implementation runs a routed MLP: an explicit one, or the one expected to be fastest here.

Shapes: n tokens, d model, f neurons, p pathways.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.activations import ACTIVATIONS
from kernels.backends import GPU_TOKENS, forget_installed, refusal
from kernels.costs import Choice, Shape, cheapest
from kernels.cpu.grouped import grouped_forward
from kernels.dense import dense
from kernels.ops import amx, grouped, on_gpu, rows
from kernels.reference import routed_mlp_reference
from kernels.router import Router

if TYPE_CHECKING:
    from kernels.cpu.fused import FusedMLP
    from kernels.gpu.step import Step

log = logging.getLogger(__name__)

FUSING = {"cpu": ("rows", "amx"), "cuda": ("triton",)}  # those with a fused call
# A choice made without looking at the data (on CUDA, inside torch.compile) supposes this share of pathways.
SUPPOSED_DENSITY = 0.25
# µs that a router and a rule take as some twenty operations of PyTorch, which a fused call saves (measured 130 to 180).
ROUTER_OPERATIONS = 130


def check_arguments(x, W_in, W_out, gates, chosen, offsets, activation, b_in, W_gate, b_gate) -> None:
    """Raises ValueError where shapes, types or names do not fit; never reads a tensor, so waits for no device."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"`activation` is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}.")
    if len(offsets) < 2 or offsets[0] != 0 or any(a > b for a, b in pairwise(offsets)):
        raise ValueError(f"`offsets` is {tuple(offsets)}; it must start at 0, never decrease and name a pathway.")
    if x.dim() != 2:
        raise ValueError(f"`x` has shape {tuple(x.shape)}; it must be tokens × d_model.")
    (n, d), f, p = x.shape, offsets[-1], len(offsets) - 1
    for name, tensor, shape in (
        ("W_in", W_in, (f, d)),
        ("W_gate", W_gate, (f, d)),
        ("W_out", W_out, (f, d)),
        ("b_in", b_in, (f,)),
        ("b_gate", b_gate, (f,)),
        ("gates", gates, (n, p)),
        ("chosen", chosen, (n, p)),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}; x and offsets ask for {tuple(shape)}.")
        if name not in ("gates", "chosen") and tensor.dtype != x.dtype:
            raise ValueError(f"`{name}` is {tensor.dtype}; it must be of the type of x ({x.dtype}).")
        if tensor.device != x.device:
            raise ValueError(f"`{name}` is on {tensor.device}; it must be where x is ({x.device}).")
    if chosen.dtype != torch.bool:
        raise ValueError(f"`chosen` is {chosen.dtype}; it must be torch.bool.")
    if b_gate is not None and W_gate is None:
        raise ValueError("`b_gate` is given without `W_gate`.")


def candidates(shape: Shape) -> list[str]:
    """The backends that "auto" weighs for such a call, all of which can run here."""
    names = ["dense", "triton"] if shape.device == "cuda" else ["dense", "grouped", "rows", "amx"]
    dtype = getattr(torch, shape.dtype)
    return [name for name in names if refusal(name, shape.device, dtype, shape.n_pathways) is None]


@functools.lru_cache(maxsize=4096)
def _choose(shape: Shape, n_tokens: int, density: float) -> Choice:
    choice = cheapest(candidates(shape), shape, n_tokens, density)
    log.info("%s for %s tokens at density %.2f of %s: %s", choice.backend, n_tokens, density, shape, choice.reason)
    return choice


def _rounded(n_tokens: int, density: float) -> tuple[int, float]:
    """To the next power of two and the next sixteenth, so that choices are few, remembered, and logged once."""
    tokens = 1 << max(n_tokens - 1, 0).bit_length()
    return tokens, min(1.0, -(-density * 16 // 1) / 16)


def _few_sizes(n_tokens: int) -> int:
    """To the next of 1, 8, 64, 512, …: compiled with dynamic shapes, each is one guard and one graph."""
    size = 1
    while size < n_tokens:
        size *= 8
    return size


def forget_choices() -> None:
    """Makes "auto" decide anew, as after a calibration or an installation."""
    _choose.cache_clear()
    _fusing_pays.cache_clear()
    forget_installed()


def _auto(
    n_tokens: int,
    density: float,
    d_model: int,
    d_ff: int,
    n_pathways: int,
    gated: bool,
    dtype: str,
    device: str,
    training: bool,
) -> str:
    shape = Shape(d_model, d_ff, n_pathways, gated, dtype, device, training)
    return _choose(shape, *_rounded(n_tokens, density)).backend


_auto._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see kernels.backends


def fuses(x: Tensor, W_in: Tensor, density: float, n_pathways: int, gated: bool, backend: str) -> str | None:
    """The backend for `prepare_fused` on x [n, d], if it can run and `backend` asks for it or "auto" prefers it."""
    device, (f, d) = x.device.type, W_in.shape
    if (
        type(x) is not Tensor
        or device not in FUSING
        or backend not in ("auto", *FUSING[device])
        or x.dtype != W_in.dtype
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled(device)
        or (device == "cuda" and len(x) > GPU_TOKENS)
        or refusal(FUSING[device][0] if backend == "auto" else backend, device, x.dtype, n_pathways)
    ):
        return None
    if backend != "auto":
        return backend
    return _fusing_pays(len(x), density, d, f, n_pathways, gated, x.dtype, device)


@functools.lru_cache(maxsize=4096)
def _fusing_pays(
    n: int, density: float, d: int, f: int, n_pathways: int, gated: bool, dtype: torch.dtype, device: str
) -> str | None:
    shape = Shape(d, f, n_pathways, gated, str(dtype).removeprefix("torch."), device, False)
    times = _choose(shape, *_rounded(n, density)).times
    best = min(FUSING[device], key=lambda name: times.get(name, math.inf))
    return best if times.get(best, math.inf) <= min(times.values()) + ROUTER_OPERATIONS else None


def prepare_fused(
    router: Router,
    W_in: Tensor,
    b_in: Tensor | None,
    W_gate: Tensor | None,
    b_gate: Tensor | None,
    W_out: Tensor,
    b_out: Tensor | None,
    mean_out: Tensor | None,
    offsets: Sequence[int],
    activation: str,
) -> "FusedMLP | Step":
    """b_out + `routed_mlp` at the gates and choices of `kernels.choose`, in one compiled call.

    That is a function of x [n, d] and the backend that `fuses` named. mean_out [p, d]: added for every pathway that is
    not chosen. For float32 or bfloat16 on the CPU, on CUDA float16 too and up to 16 tokens; without gradient. Weights,
    the router's too, are of the type of x. They must not move, but may change in place unless the function says that
    they were `copied`.
    """
    if W_in.device.type == "cuda":
        from kernels.gpu.step import Step  # Triton exists for Linux alone

        return Step(router, W_in, b_in, W_gate, b_gate, W_out, b_out, mean_out, offsets, activation)
    from kernels.cpu.fused import FusedMLP  # numba takes half a second to import and is optional

    return FusedMLP(router, W_in, b_in, W_gate, b_gate, W_out, b_out, mean_out, offsets, activation)


def explain(
    n_tokens: int,
    d_model: int,
    offsets: Sequence[int],
    density: float,
    *,
    gated: bool = False,
    training: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> str:
    """One line: what "auto" picks for such a call, and the expected times (µs) that decide it.

    density: the share of (token, pathway) pairs that are chosen; training: forward and backward, not forward alone.
    """
    shape = Shape(d_model, offsets[-1], len(offsets) - 1, gated, str(dtype).removeprefix("torch."), device, training)
    choice = _choose(shape, *_rounded(n_tokens, density))
    return f"{choice.backend} for {n_tokens} tokens at density {density:g}: {choice.reason}"


def _cast(tensor: Tensor) -> Tensor:
    """Under autocast in the autocast type, as `F.linear` would take it."""
    device = tensor.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # asking raises for `meta`
    return tensor.to(torch.get_autocast_dtype(device)) if on else tensor


def routed_mlp(
    x: Tensor,
    W_in: Tensor,
    W_out: Tensor,
    gates: Tensor,
    chosen: Tensor,
    offsets: Sequence[int],
    *,
    activation: str,
    b_in: Tensor | None = None,
    W_gate: Tensor | None = None,
    b_gate: Tensor | None = None,
    backend: str = "auto",
    density: float | None = None,
    most: int | None = None,
) -> Tensor:
    """y = Σ over chosen pathways p of gates[:, p] · h_p W_out_p, h_p being the hidden activations of p's neurons.

    h = act(x W_inᵀ + b_in); gated: h = act(x W_gateᵀ + b_gate) ⊙ (x W_inᵀ + b_in). The output bias is not added here.
    x [n, d]; W_in, W_gate, W_out [f, d]; b_in, b_gate [f]; gates [n, p]; chosen [n, p] bool; offsets: p + 1 ints,
    pathway i owns neurons offsets[i] to offsets[i + 1]. Returns y [n, d]. Differentiable in x, weights, biases and
    gates (zero where not chosen). density: the expected share of chosen pairs, which guides "auto"; by default counted
    on the CPU, and supposed to be a quarter where counting would wait for a device or break a compiled graph. most: of
    pathways for a token, if known; memory on a GPU is reserved for as many, and tokens that find none left become NaN.
    Raises ValueError for shapes that do not fit and for a backend that does not exist or cannot run here.
    """
    x, W_in, W_out = _cast(x), _cast(W_in), _cast(W_out)
    b_in, W_gate, b_gate = (None if tensor is None else _cast(tensor) for tensor in (b_in, W_gate, b_gate))
    check_arguments(x, W_in, W_out, gates, chosen, offsets, activation, b_in, W_gate, b_gate)
    if (why := refusal(backend, x.device.type, x.dtype, chosen.shape[1])) is not None:
        raise ValueError(f"`backend` is {backend!r}; {why}.")
    compiling = torch.compiler.is_compiling()
    training = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, W_in, W_out, gates, b_in, W_gate, b_gate)
    )
    if backend == "auto":
        if density is None:
            counted = x.device.type == "cpu" and not compiling
            density = int(chosen.sum()) / max(chosen.numel(), 1) if counted else SUPPOSED_DENSITY
        n_tokens = _few_sizes(len(x)) if compiling else len(x)
        dtype = str(x.dtype).removeprefix("torch.")
        shape = (W_in.shape[1], W_in.shape[0], chosen.shape[1], W_gate is not None, dtype, x.device.type, training)
        backend = _auto(n_tokens, density, *shape)
    if backend == "reference":
        return routed_mlp_reference(
            x, W_in, W_out, gates, chosen, offsets, activation=activation, b_in=b_in, W_gate=W_gate, b_gate=b_gate
        )
    # An operator costs some 30 µs to call, as much as a token of a small MLP: only autograd and compilation need it.
    operator = training or compiling
    run: Callable[..., Tensor]
    if backend == "rows" and not operator:
        from kernels.cpu.rows import rows_forward

        run = rows_forward
    elif backend == "amx" and not operator:
        from kernels.cpu.amx import amx_forward

        run = amx_forward
    elif backend == "grouped" and not operator:
        run = grouped_forward
    elif backend == "triton" and not operator:
        from kernels.gpu import launch

        run = launch.on_gpu
    else:
        operators: dict[str, Callable[..., Tensor]]
        operators = {"dense": dense, "grouped": grouped, "rows": rows, "amx": amx, "triton": on_gpu}
        run = operators[backend]
    bound = (most,) if backend == "triton" else ()
    return run(x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation, *bound)
