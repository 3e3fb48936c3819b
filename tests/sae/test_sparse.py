"""Sparse products against dense ones, and exact two-level selection."""

import pytest
import torch
from torch.testing import assert_close

from slms.sae import sparse
from slms.sae.sparse import Picks, largest_columns, sddmm, spmm, spmm_t


@pytest.fixture
def problem():
    """Picks with an empty row and unused latents; values, weights, and the dense matrix, by hand."""
    torch.manual_seed(0)
    mask = torch.rand(6, 11) < 0.3
    mask[2], mask[:, 4] = False, False
    picks = Picks.of_flat(mask.flatten().nonzero()[:, 0], mask.shape)
    values = torch.randn(int(mask.sum()), dtype=torch.float64)
    matrix = torch.zeros(6, 11, dtype=torch.float64)
    matrix[mask] = values
    return picks, values, matrix, mask


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["dense", "sparse"])
def test_products(problem, share, monkeypatch):
    monkeypatch.setattr(sparse, "DENSE_SHARE", share)
    picks, values, matrix, mask = problem
    assert picks.is_dense == (share == 0.0)
    W, x = torch.randn(11, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    assert_close(picks.dense(values), matrix)
    assert_close(spmm(picks, values, W), matrix @ W)
    assert_close(spmm_t(picks, values, x), matrix.T @ x)
    assert_close(sddmm(picks, x, W), (x @ W.T)[mask])


def test_picks_by_row_by_latent_and_split(problem):
    picks, values, matrix, mask = problem
    assert torch.equal(picks.flat, mask.flatten().nonzero()[:, 0])
    order, rows, offsets = picks.by_latent
    assert torch.equal(offsets.diff(), mask.sum(0))
    for latent in range(11):
        mine = slice(offsets[latent], offsets[latent + 1])
        assert_close(matrix[rows[mine], latent], values[order[mine]])
    split = picks.split(torch.tensor([2, 5, 11]))
    dense = split.dense(values).view(6, 3, 11)
    assert_close(dense.sum(1), matrix)
    for group, (low, high) in enumerate([(0, 2), (2, 5), (5, 11)]):
        assert_close(dense[:, group, low:high], matrix[:, low:high])


def test_no_picks_at_all():
    picks = Picks.of_flat(torch.empty(0, dtype=torch.int64), torch.Size([3, 5]))
    W = torch.randn(5, 2)
    assert torch.equal(spmm(picks, torch.empty(0), W), torch.zeros(3, 2))
    assert torch.equal(spmm_t(picks, torch.empty(0), torch.randn(3, 2)), torch.zeros(5, 2))


@pytest.mark.parametrize(("s", "k"), [(64, 3), (64, 64), (100, 7), (97, 5), (1024, 40), (16, 8)])
def test_top_k_is_exact(s, k):
    pre = torch.randn(9, s, generator=torch.Generator().manual_seed(s + k))
    columns = largest_columns(pre, k)
    assert columns.shape == (9, k)
    assert torch.equal(pre.gather(1, columns).sort(1).values, pre.topk(k, dim=1).values.sort(1).values)
    assert all(len(set(row.tolist())) == k for row in columns)


def test_top_k_of_equal_entries_picks_k_different_ones():
    columns = largest_columns(torch.zeros(2, 64), 3)
    assert all(len(set(row.tolist())) == 3 for row in columns)
