"""The activations of the Triton kernels and their slopes, and rounding to bfloat16, against PyTorch."""

import pytest
import torch
import triton
import triton.language as tl

from slms.kernels.activations import ACTIVATIONS
from slms.kernels.gpu.pieces import activate, narrow, slope
from slms.kernels.gpu.tiles import ACTS, INTERPRETED

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _evaluate(a, value, derivative, ACT: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(value + i, activate(tl.load(a + i), ACT))
    tl.store(derivative + i, slope(tl.load(a + i), ACT))


@triton.jit
def _round(a, out, UPCAST: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, narrow(tl.load(a + i), out.dtype.element_ty, UPCAST))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_and_slope(name):
    # From far left, where an exponential overflows, to far right; NaN last.
    a = torch.cat([torch.linspace(-100, 100, 31), torch.linspace(-4, 4, 32) + 0.01, torch.tensor([float("nan")])])
    a = a.to(DEVICE)
    value, derivative = torch.empty_like(a), torch.empty_like(a)
    _evaluate[(1,)](a, value, derivative, ACTS[name], len(a))
    exact = a.double().requires_grad_()
    expected = ACTIVATIONS[name](exact)
    torch.testing.assert_close(value, expected.float(), rtol=1e-5, atol=1e-6, equal_nan=True)
    expected_slope = torch.autograd.grad(expected.sum(), exact)[0].float()
    torch.testing.assert_close(derivative[:-1], expected_slope[:-1], rtol=1e-5, atol=1e-6)


def test_rounds_to_nearest_even():
    a = torch.randn(256, generator=torch.Generator().manual_seed(0))
    a[:2] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])  # ties
    out = torch.empty(256, dtype=torch.bfloat16, device=DEVICE)
    _round[(1,)](a.to(DEVICE), out, INTERPRETED, 256)
    assert torch.equal(out.cpu(), a.bfloat16())
