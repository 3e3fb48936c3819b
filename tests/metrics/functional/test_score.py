"""The share of units beyond chance has the right false-discovery rate."""

import pytest
import torch

from slms.metrics.functional.score import share_beyond_chance


def test_share_is_that_of_benjamini_and_hochberg():
    z = torch.tensor([5.0, 4.0, 1.7, 0.0, -3.0])
    # p = 3e-7, 3e-5, .045, .5, .999 against .01, .02, .03, .04, .05
    assert share_beyond_chance(z) == pytest.approx(2 / 5)
    assert share_beyond_chance(torch.tensor([0.0, -1.0])) == 0.0
    assert torch.tensor(share_beyond_chance(torch.tensor([torch.nan]))).isnan()
