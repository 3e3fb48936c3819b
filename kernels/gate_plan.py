"""Which implementation "auto" picks for gate-selected neurons, and why.

On a CPU by measured break-evens, on a GPU by `kernels.gate_gpu`.
"""

import functools
import logging
import math
from typing import Any

import torch

from slms.kernels.backends import GPU_TOKENS, refusal
from slms.kernels.gate_gpu import gate_refusal, gpu_plan, size_class

log = logging.getLogger(__name__)

BREAK_EVEN = {4: 1.0, 8: 0.6, 32: 0.5, math.inf: 0.4}
"""Tokens → the density up to which "rows" is faster for so many; d 576, f 1,536, one thread (docs/log.md)."""
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


def _constant_plan(*arguments: Any) -> tuple[str, str]:
    return _plan(*arguments)


_constant_plan._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see kernels.backends
