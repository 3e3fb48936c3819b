"""Tiny MLPs, plain and gated, with calibration inputs."""

import pytest
import torch

from slms.models.weights import MLPWeights

D, F = 6, 20


def make(gated: bool, biased: bool = True) -> MLPWeights:
    g = torch.Generator().manual_seed(3)

    def normal(*size):
        return torch.randn(*size, generator=g)

    return MLPWeights(
        W_in=normal(F, D),
        W_out=normal(D, F).T,  # stored column by column, as in nearly every model
        b_in=normal(F) if biased else None,
        b_out=normal(D) if biased else None,
        W_gate=normal(F, D) if gated else None,
        b_gate=normal(F) if gated and biased else None,
        activation="silu" if gated else "gelu_new",
    )


@pytest.fixture(params=[False, True], ids=["plain", "gated"])
def weights(request):
    return make(request.param, biased=request.param is False)


@pytest.fixture
def gated_weights():
    return make(True)


@pytest.fixture
def x():
    return torch.randn(4, 16, D, generator=torch.Generator().manual_seed(5)) + 0.3


@pytest.fixture
def tokens():
    return torch.randn(2, 8, D, generator=torch.Generator().manual_seed(6)) + 0.3
