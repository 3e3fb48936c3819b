"""Reduced-rank regression against what defines it: no map of the same rank does better on its tokens."""

import pytest
import torch

from slms.models.dynamic.predictor import fit_low_rank


def error(W, x, rank, map=None):
    narrow, wide, shift = map or fit_low_rank(W, x, rank, ridge=0.0)
    return ((x @ W.T) - (x @ narrow.T @ wide.T + shift)).square().sum().item()


def test_it_is_the_best_of_its_rank():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=g, dtype=torch.float64) * torch.tensor([3.0, 1.0, 1.0, 0.5, 0.1]) + 2
    W = torch.randn(7, 5, generator=g, dtype=torch.float64)
    y = (x - x.mean(0)) @ W.T
    for rank in (1, 2, 5):
        left = torch.linalg.svdvals(y)[rank:].square().sum().item()  # Eckart–Young on the outputs themselves
        assert error(W, x, rank) == pytest.approx(left, abs=1e-8)


def test_constant_inputs_and_few_tokens():
    W = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    map = fit_low_rank(W, torch.ones(3, 5), 2)
    torch.testing.assert_close(torch.ones(1, 5) @ map.narrow.T @ map.wide.T + map.shift, torch.ones(1, 5) @ W.T)


@pytest.mark.parametrize("rank", [0, 6])
def test_refuses(rank):
    with pytest.raises(ValueError, match=f"`rank` is {rank}; it must be from 1 to 5"):
        fit_low_rank(torch.ones(7, 5), torch.ones(3, 5), rank)
