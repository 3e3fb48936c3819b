"""The operations on tile registers equal products and transpositions of whole matrices."""

import numba
import numpy as np
import pytest
import torch

from slms.kernels import backends
from slms.kernels.cpu import amx_tiles

pytestmark = pytest.mark.skipif(
    backends.refusal("amx", "cpu", torch.bfloat16) is not None, reason="needs a CPU with AMX"
)


def some(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(size[0])).bfloat16()


@pytest.mark.parametrize(("n_left", "n_right"), [(2, 2), (2, 1), (1, 2)])
def test_products_of_packed_operands(n_left, n_right):
    tile, pack = amx_tiles.products(n_left, n_right), amx_tiles.pack_tokens

    @numba.njit
    def run(left, tables, packed, d, out):
        for j in range(n_right):
            pack(tables + 8 * 16 * j, d, packed + 32 * d * j)
        amx_tiles.begin_tiles()
        tile(left, 2 * d, 32 * d, 64, packed, 32 * d, amx_tiles.TILE, d // 32, out, 4 * 16 * n_right)
        amx_tiles.end_tiles()

    for d in (32, 160):
        rows, tokens = some(16 * n_left, d), some(16 * n_right, d)
        table = np.array([token.data_ptr() for token in tokens], np.int64)
        packed, out = torch.empty(n_right * 16 * d, dtype=torch.bfloat16), torch.empty(16 * n_left, 16 * n_right)
        run(rows.data_ptr(), table.ctypes.data, packed.data_ptr(), d, out.data_ptr())
        torch.testing.assert_close(out, rows.float() @ tokens.float().T, rtol=1e-5, atol=1e-4)


def test_hidden_and_rows():
    """u [32 neurons, 16 tokens] and W [32, 96] become the operands of a product (gate · u)ᵀ W."""
    tile = amx_tiles.products(1, 2)

    @numba.njit
    def run(u, gates, W, left, right, out):
        amx_tiles.pack_hidden(u, 64, gates, left)
        amx_tiles.pack_rows(W, 96, right, 2 * amx_tiles.TILE)
        amx_tiles.begin_tiles()
        for column in range(3):
            tile(
                left,
                64,
                0,
                amx_tiles.TILE,
                right + 2 * amx_tiles.TILE * column,
                amx_tiles.TILE,
                0,
                1,
                out + 128 * column,
                4 * 96,
            )
        amx_tiles.end_tiles()

    u, gates, W = some(32, 16).float() * 1.01, some(16).float(), some(32, 96)
    left, right = torch.empty(16, 32, dtype=torch.bfloat16), torch.empty(32 * 96, dtype=torch.bfloat16)
    out = torch.empty(16, 96)
    run(*(tensor.data_ptr() for tensor in (u, gates, W, left, right, out)))
    assert torch.equal(left, (u * gates).bfloat16().T)  # rounded as PyTorch rounds, half to even
    torch.testing.assert_close(out, left.float() @ W.float(), rtol=1e-5, atol=1e-4)


def test_add_row():
    run = numba.njit(lambda target, source: amx_tiles.add_row(target, source))
    target, source = some(40).float(), some(33).float()
    expected = torch.cat([target[:32] + source[:32], target[32:]])
    run(target.data_ptr(), source.data_ptr())
    assert torch.equal(target, expected)
