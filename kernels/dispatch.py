"""Chooses the implementation that runs a routed MLP: an explicit one, or the one expected to be fastest here.

Shapes: n tokens, d model, f neurons, p pathways.
"""

import functools
import logging
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slms.kernels.activations import ACTIVATIONS
from slms.kernels.backends import GPU_TOKENS, forget_installed, refusal
from slms.kernels.call import Call, Layer, check_tensors
from slms.kernels.costs import Decision, Shape, cheapest
from slms.kernels.dense import dense
from slms.kernels.ops import IMPLEMENTATIONS, OPERATORS, load
from slms.kernels.reference import routed_mlp_reference

if TYPE_CHECKING:
    from slms.kernels.cpu.fused import FusedMLP
    from slms.kernels.gpu.step import Step

log = logging.getLogger(__name__)

FUSING = {"cpu": ("rows", "amx"), "cuda": ("triton",)}  # those with a fused call
# A choice made without looking at the data (on CUDA, inside torch.compile) assumes this share of pathways.
SUPPOSED_DENSITY = 0.25
# µs that a router and a rule take as some twenty operations of PyTorch, which a fused call saves (measured 130 to 180).
ROUTER_OPERATIONS = 130


def check_arguments(call: Call) -> None:
    """Raise ValueError if shapes, types or names do not fit; it reads no tensor, so it waits for no device."""
    x, offsets = call.x, call.offsets
    if call.activation not in ACTIVATIONS:
        raise ValueError(f"`activation` is {call.activation!r}; it must be one of {', '.join(ACTIVATIONS)}.")
    if len(offsets) < 2 or offsets[0] != 0 or any(a > b for a, b in pairwise(offsets)):
        raise ValueError(f"`offsets` is {tuple(offsets)}; it must start at 0, never decrease and name a pathway.")
    if x.dim() != 2:
        raise ValueError(f"`x` has shape {tuple(x.shape)}; it must be tokens × d_model.")
    (n, d), f, p = x.shape, offsets[-1], len(offsets) - 1
    check_tensors(call, (f, d), {"gates": (n, p), "chosen": (n, p)})
    if call.chosen.dtype != torch.bool:
        raise ValueError(f"`chosen` is {call.chosen.dtype}; it must be torch.bool.")
    if call.b_gate is not None and call.W_gate is None:
        raise ValueError("`b_gate` is given without `W_gate`.")


def candidates(shape: Shape) -> list[str]:
    """The backends that "auto" considers for such a call; all of them can run here."""
    names = ["dense", "triton"] if shape.device == "cuda" else ["dense", "grouped", "rows", "amx"]
    dtype = getattr(torch, shape.dtype)
    return [name for name in names if refusal(name, shape.device, dtype, shape.n_pathways) is None]


@functools.lru_cache(maxsize=4096)
def _decide(shape: Shape, n_tokens: int, density: float) -> Decision:
    decision = cheapest(candidates(shape), shape, n_tokens, density)
    log.info("%s for %s tokens at density %.2f of %s: %s", decision.backend, n_tokens, density, shape, decision.reason)
    return decision


def _rounded(n_tokens: int, density: float) -> tuple[int, float]:
    """Round to the next power of two and the next sixteenth, so that choices are few, remembered, and logged once."""
    tokens = 1 << max(n_tokens - 1, 0).bit_length()
    return tokens, min(1.0, -(-density * 16 // 1) / 16)


def _few_sizes(n_tokens: int) -> int:
    """Round up to one of 1, 8, 64, 512, …; when compiled with dynamic shapes, each is one guard and one graph."""
    size = 1
    while size < n_tokens:
        size *= 8
    return size


def forget_choices() -> None:
    """Make "auto" decide again, as you need after a calibration or an installation."""
    _decide.cache_clear()
    _fusing_pays.cache_clear()
    forget_installed()


def _auto(n_tokens: int, density: float, *shape: Any) -> str:
    """Choose a backend. The fields of `Shape` come one by one, because to the compiler no NamedTuple is a constant."""
    return _decide(Shape(*shape), *_rounded(n_tokens, density)).backend


_auto._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see kernels.backends


def fuses(x: Tensor, W_in: Tensor, density: float, n_pathways: int, gated: bool, backend: str) -> str | None:
    """The backend for `prepare_fused` on x [n, d], if it can run and `backend` names it or "auto" prefers it."""
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
    times = _decide(shape, *_rounded(n, density)).times
    best = min(FUSING[device], key=lambda name: times.get(name, math.inf))
    return best if times.get(best, math.inf) <= min(times.values()) + ROUTER_OPERATIONS else None


def prepare_fused(layer: Layer) -> "FusedMLP | Step":
    """Prepare b_out + `routed_mlp` at the gates and choices of `kernels.choose` as one compiled call.

    Returns a function of x [n, d] and the backend that `fuses` named. It takes float32 or bfloat16 on the CPU, on CUDA
    also float16 but at most 16 tokens, and gives no gradient. All weights, also the router's, must have the type of x.
    They must not move, but may change in place unless the function says that they were `copied`.

    Raises:
        ValueError: the router has shared pathways, which are known on the CPU alone.
    """
    if layer.W_in.device.type == "cuda":
        if layer.router.n_shared:
            raise ValueError(f"a router with {layer.router.n_shared} shared pathways has no fused call on CUDA")
        from slms.kernels.gpu.step import Step  # Triton exists for Linux alone

        return Step(layer)
    from slms.kernels.cpu.fused import FusedMLP  # numba takes half a second to import and is optional

    return FusedMLP(layer)


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
    """Tell in one line what "auto" picks for such a call, and the expected times (µs) that decide it.

    density: the share of (token, pathway) pairs that are chosen; training: forward and backward, not forward alone.
    """
    shape = Shape(d_model, offsets[-1], len(offsets) - 1, gated, str(dtype).removeprefix("torch."), device, training)
    decision = _decide(shape, *_rounded(n_tokens, density))
    return f"{decision.backend} for {n_tokens} tokens at density {density:g}: {decision.reason}"


def _cast(call: Call) -> Call:
    """Cast the call to the autocast type under autocast, as `F.linear` would."""
    device = call.x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # asking raises for `meta`
        return call
    dtype = torch.get_autocast_dtype(device)
    tensors = (None if tensor is None else tensor.to(dtype) for tensor in (call.x, *call.weights))
    return Call._make([*tensors, *call[6:]])


def _shape(call: Call, training: bool) -> Shape:
    """The properties of the call for which a calibration holds."""
    (f, d), x = call.W_in.shape, call.x
    dtype = str(x.dtype).removeprefix("torch.")
    return Shape(d, f, call.chosen.shape[1], call.W_gate is not None, dtype, x.device.type, training)


def routed_mlp(call: Call, backend: str = "auto", density: float | None = None) -> Tensor:
    """y [n, d] = Σ over chosen pathways p of gates[:, p] · h_p W_out_p, h_p = activations of p's neurons.

    h = act(x W_inᵀ + b_in); gated: h = act(x W_gateᵀ + b_gate) ⊙ (x W_inᵀ + b_in). The output bias is not added here.
    It is differentiable in x, weights, biases and gates (zero where not chosen). density: the expected share of chosen
    pairs, which guides "auto". By default it is counted on the CPU, and assumed to be a quarter if counting would wait
    for a device or break a compiled graph. Raises ValueError if shapes do not fit, or if a backend does not exist or
    cannot run here.
    """
    call = _cast(call)
    check_arguments(call)
    if (why := refusal(backend, call.x.device.type, call.x.dtype, call.chosen.shape[1])) is not None:
        raise ValueError(f"`backend` is {backend!r}; {why}.")
    compiling = torch.compiler.is_compiling()
    training = torch.is_grad_enabled() and len(call.leaves) > 0  # torch 2.11 cannot trace bool of a list
    if backend == "auto":
        if density is None:
            counted = call.x.device.type == "cpu" and not compiling
            density = int(call.chosen.sum()) / max(call.chosen.numel(), 1) if counted else SUPPOSED_DENSITY
        n_tokens = _few_sizes(len(call.x)) if compiling else len(call.x)
        backend = _auto(n_tokens, density, *_shape(call, training))
    if backend == "reference":
        return routed_mlp_reference(call)
    if backend == "dense":
        return dense(call)
    # Calling an operator costs some 30 µs, as much as a token of a small MLP; only autograd and compilation need it.
    if training or compiling:
        return OPERATORS[backend](*call)
    forward, _ = IMPLEMENTATIONS[backend]
    return load(forward)(call)
