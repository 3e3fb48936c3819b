"""Every shipped tile equals a matrix product, for whole vectors and for what is left of them."""

import numba
import numpy as np
import pytest
import torch

from slms.kernels.cpu import compiled, vectors

COMPILED = compiled.OPTIONS


def table(rows: torch.Tensor) -> np.ndarray:
    return np.array([row.data_ptr() for row in rows], np.int64)


def some(*size: int, half: bool = False) -> torch.Tensor:
    numbers = torch.randn(*size, generator=torch.Generator().manual_seed(len(size) + size[0]))
    return numbers.bfloat16() if half else numbers


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("n_tokens", [1, 2, 4])
def test_dots(n_tokens, half):
    tile = vectors.dots(4, n_tokens, half)
    run = numba.njit(**COMPILED)(lambda rows, tokens, d, out, stride: tile(rows, tokens, d, out, stride))
    for d in (1, 16, 31, 80):
        rows, tokens = some(4, d, half=half), some(n_tokens, d)
        w, x = table(rows), table(tokens)
        out = torch.full((4, 7), torch.nan)
        run(w.ctypes.data, x.ctypes.data, d, out.data_ptr(), 7)
        torch.testing.assert_close(out[:, :n_tokens], rows.float() @ tokens.T, rtol=1e-5, atol=1e-5)
        assert out[:, n_tokens:].isnan().all()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("n_out", "width"), [(1, 8), (2, 8), (4, 4)])
def test_sums(n_out, width, half):
    tile = vectors.sums(n_out, width, half)
    run = numba.njit(**COMPILED)(lambda out, rows, n, d, h, by_row, by_out: tile(out, rows, n, d, h, by_row, by_out))
    for d in (1, 16, 31, 150):
        rows, before, factors = some(5, d, half=half), some(n_out, d), some(n_out, 5)
        out = torch.cat([before, torch.full((1, d), torch.nan)])  # what lies behind is not touched
        w, y = table(rows), table(out)
        run(y.ctypes.data, w.ctypes.data, 5, d, factors.data_ptr(), 1, 5)
        torch.testing.assert_close(out[:n_out], before + factors @ rows.float(), rtol=1e-5, atol=1e-5)
        assert out[n_out].isnan().all()
