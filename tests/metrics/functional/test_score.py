"""The share of units beyond chance has the right false-discovery rate."""

import pytest
import torch

from slms.metrics.functional.score import mean_score, share_beyond_chance


def test_share_is_that_of_benjamini_and_hochberg():
    z = torch.tensor([5.0, 4.0, 1.7, 0.0, -3.0])
    # p = 3e-7, 3e-5, .045, .5, .999 against .01, .02, .03, .04, .05
    assert share_beyond_chance(z) == pytest.approx(2 / 5)
    assert share_beyond_chance(torch.tensor([0.0, -1.0])) == 0.0
    assert torch.tensor(share_beyond_chance(torch.tensor([torch.nan]))).isnan()


def test_mean_over_tokens_with_its_interval_over_documents():
    values = torch.tensor([0.5, 1.0, torch.nan, 0.0, 0.5])
    score = mean_score(values, torch.tensor([3, 3, 3, 9, 9]))
    assert (score.value, score.n, score.ceiling) == (0.5, 4, 1.0)
    assert score.left_out.tolist() == [0.25, 0.75] and score.high - score.value == pytest.approx(12.706 * 0.25)
    assert mean_score(torch.tensor([torch.nan]), torch.tensor([0])).n == 0
