"""Biases give choices the wanted loads, exactly where thresholds do and within 2 % where tokens choose k."""

import pytest
import torch

from slms.metrics.functional import load_error, matched_bias, matched_choice


def _scores(n=3000, p=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=generator) @ torch.randn(5, p, generator=generator)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("skew", [0.0, 2.0])
def test_k_choices_have_the_wanted_loads(k, skew):
    """The wanted loads are those of another router, so that they are possible."""
    wanted = (_scores(seed=1) + skew * torch.arange(9) / 4).topk(k).indices.flatten().bincount(minlength=9)
    scores = _scores()
    chosen = matched_choice(scores, matched_bias(scores, wanted, k), k)
    assert chosen.sum(1).eq(k).all()
    assert (chosen.sum(0) - wanted).abs().le((0.02 * wanted).clamp(min=1)).all()


def test_more_tokens_than_the_search_starts_with():
    scores, other = _scores(20_000), _scores(20_000, seed=2)
    wanted = (other + torch.arange(9) / 3).topk(2).indices.flatten().bincount(minlength=9)
    assert load_error(matched_choice(scores, matched_bias(scores, wanted, 2), 2), wanted) <= 0.02


def test_thresholds_give_loads_exactly():
    scores, wanted = _scores(), torch.tensor([0, 1, 10, 300, 1500, 2000, 2999, 3000, 7])
    chosen = matched_choice(scores, matched_bias(scores, wanted, None), None)
    assert chosen.sum(0).tolist() == wanted.tolist() and load_error(chosen, wanted) == 0


def test_pathways_that_none_or_all_choose():
    scores = _scores(400, 4)
    chosen = matched_choice(scores, matched_bias(scores, torch.tensor([400, 0, 300, 100]), 2), 2)
    assert chosen[:, 0].all() and not chosen[:, 1].any() and abs(int(chosen[:, 2].sum()) - 300) <= 6
    fixed = torch.tensor([400, 400, 0, 0])
    assert matched_choice(scores, matched_bias(scores, fixed, 2), 2).sum(0).tolist() == fixed.tolist()


def test_impossible_loads():
    with pytest.raises(ValueError, match="loads sum to 5; with k 2 and 4 tokens they must sum to 8"):
        matched_bias(torch.zeros(4, 2), torch.tensor([2, 3]), 2)
    with pytest.raises(ValueError, match="from 0 to 4"):
        matched_bias(torch.zeros(4, 2), torch.tensor([5, 3]), None)
