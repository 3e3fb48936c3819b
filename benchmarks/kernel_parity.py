"""Checks that what the benchmark times computes the same as the reference."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from slms.kernels.costs import Shape
from slms.kernels.router import Router, choose

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}


def parity(
    actual: Callable[[], Tensor],
    reference: Callable[[], Tensor],
    leaves: list[Tensor],
    shape: Shape,
    compared: Tensor | slice = slice(None),
) -> float:
    """The error of the output; raises SystemExit if it or a gradient is too far from the reference.

    compared: the tokens whose outputs are compared.
    """
    outcomes = []
    for forward in (actual, reference):
        y = forward()
        grads = torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True) if leaves else ()
        outcomes.append([y.detach()[compared], *(grad for grad in grads if grad is not None)])
    errors = []
    for ours, wanted in zip(*outcomes, strict=True):
        scale = wanted.float().abs().max().clamp(min=1e-6)
        errors.append(((ours.float() - wanted.float()).abs().max() / scale).item())
    # Both sides round once more than either does against exact arithmetic.
    if not max(errors) <= 2 * TOLERANCE[shape.dtype]:
        sys.exit(f"parity fails for {shape}: relative errors {errors}; no timings are printed")
    return errors[0]


def decided(x: Tensor, router: Router) -> Tensor:
    """The tokens [n] whose choice no rounding changes: their last score chosen is well above the next one."""
    k, p = router.k, len(router.bias)
    if k == p:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    gates = choose(x, router._replace(k=k + 1))[0].topk(k + 1).values  # these rise with the scores
    return gates[:, k - 1] - gates[:, k] > 1e-4
