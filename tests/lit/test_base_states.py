"""Hidden states on disk are those that were computed; what is missing or torn is computed again."""

import numpy as np
import pytest
import torch

from slms.lit.base_states import BaseStates

SHAPE = (5, 3, 4)
TRUE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def asked_for(states: BaseStates, blocks: list[int]) -> list[int]:
    """The blocks that were computed; what came back is checked."""
    asked: list[int] = []

    def compute(rows: list[int]) -> torch.Tensor:
        asked.extend(blocks[i] for i in rows)
        return TRUE[[blocks[i] for i in rows]]

    torch.testing.assert_close(states.of(blocks, compute), TRUE[blocks], rtol=1e-3, atol=1e-3)
    return asked


def test_each_block_is_computed_once_whatever_the_order_and_the_process(tmp_path):
    states = BaseStates(tmp_path, ("base",), SHAPE)
    assert [asked_for(states, blocks) for blocks in ([3, 0], [0, 1, 3], [1])] == [[3, 0], [1], []]
    again = BaseStates(tmp_path, ("base",), SHAPE)
    assert len(again) == 3 and asked_for(again, [4, 3]) == [4]
    assert asked_for(BaseStates(tmp_path, ("another base",), SHAPE), [3]) == [3]


def test_a_torn_row_is_computed_again(tmp_path):
    states = BaseStates(tmp_path, ("base",), SHAPE)
    asked_for(states, [0, 1])
    rows = np.lib.format.open_memmap(f"{states.path}", mode="r+")
    rows["states"][1, 2] = 0
    assert asked_for(BaseStates(tmp_path, ("base",), SHAPE), [0, 1]) == [1]


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"bytes left; .* name another disk with model.distill.cache_dir"):
        BaseStates(tmp_path, ("base",), (1 << 34, 256, 4096))
    assert not list(tmp_path.iterdir())
