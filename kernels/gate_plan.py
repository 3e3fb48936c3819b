"""Which implementation "auto" picks for gate-selected neurons, and why.

On a CPU by measured break-evens, on a GPU by `kernels.gate_gpu`.
"""

import functools
import logging
import math
from typing import Any

import torch

from slms.kernels.backends import GPU_TOKENS, pair_products, refusal
from slms.kernels.costs import narrow
from slms.kernels.gate_gpu import gate_refusal, gpu_plan, size_class
from slms.kernels.gate_reference import GateCall

log = logging.getLogger(__name__)

BREAK_EVEN = {4: 1.0, 8: 0.6, 32: 0.5, math.inf: 0.4}
"""Tokens → the density up to which "rows" is faster for so many; d 576, f 1,536, one thread (docs/log.md)."""
STEP_BREAK_EVEN, STEP_TOKENS = 0.5, 64
"""The density up to which a training step by "rows" is faster, and from how many tokens on; measured there too."""
FEW = 8  # tokens, up to which that holds for bfloat16 too; of more, a library's products are twice as fast


def rows_refusal(device: str, dtype: torch.dtype, n_units: int) -> str | None:
    """Why the compiled kernels cannot run there, or None if they can."""
    return gate_refusal(device, dtype, n_units) if device == "cuda" else refusal("rows", device, dtype)


@functools.lru_cache(maxsize=4096)
def _plan(
    limit: float, density: float, gradients: bool, device: str, dtype: torch.dtype, n_units: int, smallest: int
) -> tuple[str, str]:
    why = rows_refusal(device, dtype, n_units)
    if why is None and device == "cuda":
        plan = gpu_plan(int(limit), density, gradients, n_units, smallest)
        tokens = f"up to {limit}" if limit <= GPU_TOKENS else f"more than {GPU_TOKENS}"
    else:
        if why is None and gradients:
            why = "rows has no gradient"
        if why is None and limit > FEW and dtype != torch.float32:
            why = f"more than {FEW} tokens that choose apart are fast in float32 alone, not in {dtype}"
        if why is None and density > BREAK_EVEN[limit]:
            why = f"tokens that choose apart need nearly all rows; break-even measured at density {BREAK_EVEN[limit]}"
        plan = ("rows", "it multiplies by the chosen rows alone") if why is None else ("dense", why)
        most = list(BREAK_EVEN)[-2]
        tokens = f"up to {limit:g}" if limit <= most else f"more than {most:g}"
    log.info("%s for %s gate-selected tokens at density %.2f: %s", plan[0], tokens, density, plan[1])
    return plan


def gate_plan(
    n_tokens: int,
    density: float,
    gradients: bool,
    device: str,
    dtype: torch.dtype,
    n_units: int = 1,
    smallest: int = 1,
) -> tuple[str, str]:
    """Return the backend that "auto" picks, and why, in words; each choice is logged once.

    density: as `mean_density`; smallest: neurons of the smallest unit.
    """
    # A few classes of numbers of tokens: when compiled with dynamic shapes, each is one guard and one graph.
    limit = size_class(n_tokens) if device == "cuda" else next(most for most in BREAK_EVEN if n_tokens <= most)
    return _constant_plan(limit, density, gradients, device, dtype, n_units, smallest)


def mean_density(k: int, k_out: int | None, n_units: int) -> float:
    """The share of units that run, on the average of the products with W_in and with W_out."""
    return (k + (k if k_out is None else k_out)) / max(1, 2 * n_units)


def _float_rows() -> bool:
    return refusal("rows", "cpu", torch.float32) is None and not narrow()


def step_refusal(call: GateCall, single: bool) -> str | None:
    """Why "rows" has no gradient for a call that autocast has not cast yet, or None; `single`: its units are."""
    x, weights = call.x, (call.W_in, call.W_gate, call.W_out)
    if torch.compiler.is_compiling():
        return "rows has no gradient inside torch.compile"
    cast = torch.is_autocast_enabled(x.device.type)
    types = {torch.get_autocast_dtype(x.device.type)} if cast else {tensor.dtype for tensor in (x, *weights)}
    known = types == {torch.bfloat16} and pair_products()
    if not x.is_cpu or not (known or (types == {torch.float32} and _float_rows())):
        return "rows has a gradient only on a CPU with AVX-512, in float32, and in bfloat16 with AVX512_BF16 but no AMX"
    if not single or x.shape[-1] % 32 or call.b_in is not None or call.b_gate is not None:
        return "rows has a gradient only for single neurons without biases, of a width that 32 divides"
    return None


@functools.lru_cache(maxsize=4096)
def _step_plan(enough: bool, density: float, refusal: str | None) -> tuple[str, str]:
    why = refusal
    if why is None and not enough:
        why = f"fewer than {STEP_TOKENS} tokens"
    if why is None and density > STEP_BREAK_EVEN:
        why = f"tokens that choose apart need nearly all rows; break-even measured at density {STEP_BREAK_EVEN}"
    plan = ("rows", "it multiplies by the chosen rows alone") if why is None else ("dense", why)
    log.info("%s for a training step of gate-selected tokens at density %.2f: %s", plan[0], density, plan[1])
    return plan


def step_plan(call: GateCall, single: bool) -> tuple[str, str]:
    """The same of a call on the CPU that needs gradients, and that autocast has not cast yet; `single`: its units."""
    density = mean_density(call.k, call.k_out, len(call.offsets) - 1)
    return _step_plan(len(call.x) >= STEP_TOKENS, density, step_refusal(call, single))


def _constant_plan(*arguments: Any) -> tuple[str, str]:
    return _plan(*arguments)


_constant_plan._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see kernels.backends
