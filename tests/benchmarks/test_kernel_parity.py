"""Before a timing, a wrong result ends the run, but ties between pathways are no error."""

import pytest
import torch

from benchmarks import kernel_parity as parity
from benchmarks.kernels import random_router
from slms.kernels.costs import Shape

SHAPE = Shape(16, 64, 4, False, "float32", "cpu", False)


def test_output_and_gradients():
    x = torch.ones(3, requires_grad=True)
    assert parity.parity(lambda: x * 2, lambda: x + x, [x], SHAPE) == 0
    for wrong in (lambda: x * 2.001, lambda: x.detach() * 3 - x, lambda: x * torch.nan):
        with pytest.raises(SystemExit, match="parity fails for Shape"):
            parity.parity(wrong, lambda: x + x, [x], SHAPE)
    assert parity.parity(lambda: torch.tensor([1.0, 9.0]), lambda: torch.ones(2), [], SHAPE, slice(1)) == 0


def test_ties_are_not_compared():
    router = random_router(SHAPE, 0.5, 0)
    apart = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    assert parity.decided(apart, router).float().mean() > 0.9
    assert not parity.decided(apart, router._replace(W_out=torch.zeros_like(router.W_out), b_out=router.bias)).any()
    assert parity.decided(apart, router._replace(k=len(router.bias))).all()
