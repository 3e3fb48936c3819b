"""The slope's interval, against scipy's regression, and the verdicts."""

import math

import pytest
import torch
from scipy import stats

from slms.metrics.functional.trend import trend


@pytest.mark.parametrize("n", [3, 4, 7])
def test_slope_and_interval_are_scipys(n):
    generator = torch.Generator().manual_seed(n)
    x, noise = torch.rand(n, generator=generator).double(), torch.randn(n, generator=generator).double()
    y = 2 * x + noise
    wanted = stats.linregress(x.numpy(), y.numpy())
    half = stats.t.ppf(0.975, n - 2) * wanted.stderr
    found = trend(x, y)
    assert found.slope == pytest.approx(wanted.slope) and found.intercept == pytest.approx(wanted.intercept)
    assert found.high - found.slope == pytest.approx(half, rel=0.01)


def test_verdicts():
    x = torch.tensor([5.0, 6.0, 7.0, 8.0])
    wobble = torch.tensor([0.01, -0.01, -0.01, 0.01])
    assert trend(x, x + wobble).verdict == "rises" and trend(x, -x + wobble).verdict == "falls"
    assert trend(x, 0.001 * x + wobble).verdict == "no trend"
    assert trend(x[:2], x[:2]).verdict == "too few models" and math.isnan(trend(x[:2], x[:2]).slope)
    assert math.isnan(trend(torch.ones(4), x).slope) and trend(torch.ones(4), x).verdict == "no trend"


def test_noise_has_a_trend_in_one_suite_of_twenty():
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([5.0, 5.6, 6.0, 6.5])
    verdicts = [trend(x, torch.randn(4, generator=generator)).verdict for _ in range(2000)]
    assert 0.03 < 1 - verdicts.count("no trend") / len(verdicts) < 0.07
