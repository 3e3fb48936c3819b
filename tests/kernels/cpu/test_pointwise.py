"""Compiled activations equal PyTorch's in float64, also for numbers that are not finite."""

import numba
import numpy as np
import pytest
import torch

from slms.kernels import ACTIVATIONS
from slms.kernels.cpu.compiled import OPTIONS
from slms.kernels.cpu.pointwise import CODES, activate, activate_and_derive, exp

COMPILED = OPTIONS


@numba.njit(**COMPILED)
def values(u, code):
    activate(u, code, u.shape[0])


@numba.njit(**COMPILED)
def values_and_slopes(u, slope, code):
    activate_and_derive(u, slope, code, u.shape[0])


@numba.njit(**COMPILED)
def exponentials(u):
    for i in range(u.shape[0]):
        u[i] = exp(u[i])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_slope(name):
    x = torch.linspace(-12, 12, 4801)
    alone, u, slope = x.numpy().copy(), x.numpy().copy(), np.empty(len(x), np.float32)
    values(alone, CODES[name])
    values_and_slopes(u, slope, CODES[name])
    value = ACTIVATIONS[name].value(x.double())
    np.testing.assert_allclose(alone, value, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(u, alone, rtol=3e-7)
    wanted = ACTIVATIONS[name].backward(torch.ones_like(value), x.double())
    np.testing.assert_allclose(slope, wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_not_finite(name):
    u = np.array([np.nan, np.inf, 1e30, -1e30], np.float32)
    slope = np.empty_like(u)
    values_and_slopes(u, slope, CODES[name])
    assert np.isnan(u[0]) and u[1] == np.inf and u[2] == np.float32(1e30) and abs(u[3]) < 1e-6
    assert np.isnan(slope[0]) or name == "relu"


def test_exponential():
    x = np.linspace(-86, 86, 10001).astype(np.float32)
    actual = x.copy()
    exponentials(actual)
    np.testing.assert_allclose(actual, np.exp(x.astype(np.float64)), rtol=5e-7)
    ends = np.array([-1e9, 1e9, np.nan], np.float32)
    exponentials(ends)
    assert 0 < ends[0] < 1e-37 and 1e37 < ends[1] < np.inf and np.isnan(ends[2])
