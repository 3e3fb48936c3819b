"""The products of one token are right for whole groups of rows and whole vectors, and for what is left of them."""

import numba
import pytest
import torch

from slms.kernels.cpu import memory, single
from slms.kernels.cpu.compiled import OPTIONS


@numba.njit(**OPTIONS)
def dot(rows, count, x, d, out, size):
    lanes = single.to_lanes(x, d, size)
    single.dot_one(rows, count, lanes.ctypes.data, d, out, size)
    memory.keep(lanes)


@numba.njit(**OPTIONS)
def add(rows, count, factors, d, y, size):
    lanes = single.to_lanes(y, d, size)
    single.sum_one(rows, count, factors, d, lanes.ctypes.data, size)
    single.add_lanes(y, lanes, size)
    memory.keep(lanes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 16, 31, 32, 49, 96])
@pytest.mark.parametrize("count", [0, 1, 8, 21])
def test_products(count, d, dtype):
    generator = torch.Generator().manual_seed(d)
    rows = torch.randn(count + 1, d, generator=generator).to(dtype)
    rows[count] = torch.nan  # what lies behind is not read
    x, factors = torch.randn(d, generator=generator), torch.randn(count, generator=generator)
    out = torch.full((count + 1,), 7.0)
    dot(rows.data_ptr(), count, x.data_ptr(), d, out.data_ptr(), rows.element_size())
    torch.testing.assert_close(out[:count], rows[:count].float() @ x, rtol=1e-5, atol=1e-5)
    assert out[count] == 7
    y = torch.randn(d + 1, generator=generator)
    expected = torch.cat([2 * y[:d] + factors @ rows[:count].float(), y[d:]])
    add(rows.data_ptr(), count, factors.data_ptr(), d, y.data_ptr(), rows.element_size())
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
