"""JumpReLU and the step function, with straight-through gradients for their threshold.

K is the rectangle of width 1. Inside a window of width ε around θ, a pre-activation tells which way θ should move
(Rajamanoharan et al., arXiv:2407.14435, equations 10 to 12).

Shapes: z picks; θ has one entry per pick.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _window(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return (z - threshold).abs() < bandwidth / 2


class _Jump(torch.autograd.Function):
    """f = z·1[z > θ];  ∂f/∂z = 1[z > θ],  ∂f/∂θ = −θ/ε·K((z − θ)/ε)."""

    @staticmethod
    def forward(ctx, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z.relu() * (z > threshold)

    @staticmethod
    def backward(ctx, grad: Tensor):
        z, threshold = ctx.saved_tensors
        window = _window(z, threshold, ctx.bandwidth)
        return grad * (z > threshold), grad * (-threshold / ctx.bandwidth) * window, None


class _Step(torch.autograd.Function):
    """h = 1[z > θ];  ∂h/∂z = 0,  ∂h/∂θ = −1/ε·K((z − θ)/ε)."""

    @staticmethod
    def forward(ctx, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        z, threshold = ctx.saved_tensors
        return None, grad * _window(z, threshold, ctx.bandwidth) / -ctx.bandwidth, None


def jump(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return z·1[z > θ], which is zero for negative z."""
    return _Jump.apply(z, threshold, bandwidth)


def step(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return 1[z > θ]."""
    return _Step.apply(z, threshold, bandwidth)
