"""The order in which persistent programs take tiles; the products themselves are tested by test_launch.py."""

import pytest
import torch
import triton
import triton.language as tl

from slms.kernels.gpu.grouped import GROUP, turn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _turns(out, count, columns):
    row, column = turn(tl.program_id(0), count, columns)
    tl.store(out + 2 * tl.program_id(0), row)
    tl.store(out + 2 * tl.program_id(0) + 1, column)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 2), (8, 3), (19, 5)])
def test_every_tile_once_and_rows_in_groups(count, columns):
    out = torch.full((count * columns, 2), -1, dtype=torch.int32, device=DEVICE)
    _turns[(count * columns,)](out, count, columns)
    tiles = [tuple(pair) for pair in out.tolist()]
    assert sorted(tiles) == [(row, column) for row in range(count) for column in range(columns)]
    groups = [row // GROUP.value for row, _ in tiles]
    assert groups == sorted(groups)
    assert [column for _, column in tiles[: min(count, GROUP.value)]] == [0] * min(count, GROUP.value)
