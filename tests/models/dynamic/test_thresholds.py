"""Quantiles of what calibration showed, and the largest of each row."""

import torch

from slms.models.dynamic.thresholds import largest, sampled, threshold_at


def test_thresholds():
    values = sampled(torch.arange(1000.0).flip(0))
    assert threshold_at(values, 0.25) == 750.0
    assert threshold_at(values, 1.0) == float("-inf")
    assert len(sampled(torch.zeros(1000), 300)) <= 300


def test_the_largest_of_each_row():
    scores = torch.tensor([[1.0, 3.0, 2.0], [float("nan"), 1.0, 0.0]])
    assert largest(scores, 2).tolist() == [[False, True, True], [True, True, False]]
    assert not largest(scores, 0).any()
