"""A slope and its interval, against scipy's regression, a planted truth and its coverage; and the verdicts."""

import math

import pytest
import torch
from scipy import stats

from slms.metrics.trend import trend, trend_given


@pytest.mark.parametrize("n", [3, 4, 7])
def test_slope_and_interval_are_scipys(n):
    generator = torch.Generator().manual_seed(n)
    x, noise = torch.rand(n, generator=generator).double(), torch.randn(n, generator=generator).double()
    y = 2 * x + noise
    wanted = stats.linregress(x.numpy(), y.numpy())
    half = stats.t.ppf(0.975, n - 2) * wanted.stderr
    found = trend(x, y)
    assert found.slope == pytest.approx(wanted.slope) and found.intercept == pytest.approx(wanted.intercept)
    assert found.high - found.slope == pytest.approx(half)
    assert found.detectable == pytest.approx(half + stats.t.ppf(0.8, n - 2) * wanted.stderr)


def test_verdicts():
    x = torch.tensor([5.0, 6.0, 7.0, 8.0])
    wobble = torch.tensor([0.01, -0.01, -0.01, 0.01])
    assert trend(x, x + wobble).verdict == "rises" and trend(x, -x + wobble).verdict == "falls"
    assert trend(x, 0.001 * x + wobble).verdict == "no trend"
    assert trend(x[:2], x[:2]).verdict == "too few sizes" and math.isnan(trend(x[:2], x[:2]).slope)
    assert math.isnan(trend(torch.ones(4), x).slope) and trend(torch.ones(4), x).verdict == "no trend"


def test_noise_has_a_trend_in_one_suite_of_twenty():
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([5.0, 5.6, 6.0, 6.5])
    verdicts = [trend(x, torch.randn(4, generator=generator)).verdict for _ in range(2000)]
    assert 0.03 < 1 - verdicts.count("no trend") / len(verdicts) < 0.07


def planted(seed: int, slope: float, of_size: float = 0.01, of_run: float = 0.005, noise: float = 0.003):
    """Six sizes × three runs × four checkpoints; the loss falls with both, and the number with the loss."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> float:
        return float(torch.randn((), generator=generator))

    x, loss, y, runs = [], [], [], []
    for size in (4.5, 5.1, 5.4, 5.6, 6.0, 6.4):
        deviation = of_size * normal()
        for run in range(3):
            level = deviation + of_run * normal()
            for tokens in (0.5, 1, 2, 4):
                x.append(size)
                loss.append(3.4 - 0.8 * (size - 4.5) - 0.3 * math.log2(tokens) + 0.02 * normal())
                y.append(0.05 + slope * size - 0.03 * loss[-1] + level + noise * normal())
                runs.append(f"{size}-{run}")
    return torch.tensor(x), torch.tensor(loss), torch.tensor(y), runs


def test_a_trend_at_equal_loss_is_told_from_the_loss():
    x, loss, y, runs = planted(0, slope=0.0)
    ends = [i for i in range(len(x)) if i % 4 == 3]
    assert trend(x[ends], y[ends]).verdict == "rises"  # as the loss falls
    found = trend_given(x, loss, y, runs)
    assert found.verdict == "no trend" and found.n == 6
    assert found.given == pytest.approx(-0.03, abs=0.003)
    assert trend_given(*planted(1, slope=0.05)[:3], runs).verdict == "rises"
    assert trend_given(x[:24], loss[:24], y[:24], runs[:24]).verdict == "too few sizes"


def test_its_interval_holds_the_truth_and_its_power_is_as_said():
    found = [trend_given(*planted(seed, slope=0.02, of_size=0.01 * (seed % 2))) for seed in range(24)]
    assert sum(f.low <= 0.02 <= f.high for f in found) >= 20  # .95 of 24 is 22.8
    # detectable = (t.975 + t.8)/t.975 of half the interval at 4 degrees of freedom
    assert all(f.detectable == pytest.approx((f.high - f.slope) * (1 + 0.941 / 2.776), rel=1e-3) for f in found)


def test_the_slope_does_not_depend_on_units():
    x, loss, y, runs = planted(3, slope=0.02)
    one, other = trend_given(x, loss, y, runs), trend_given(x, loss, y * 1e3, runs)
    assert other.slope == pytest.approx(1e3 * one.slope, rel=1e-3)
    assert other.detectable == pytest.approx(1e3 * one.detectable, rel=1e-2)
