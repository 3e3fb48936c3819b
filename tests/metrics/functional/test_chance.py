"""The closed-form null against enumeration and against shuffles."""

import math

import pytest
import torch

from slms.metrics.functional.chance import moments, sum_variance


def f(k, correction):
    return (k * math.log(k) if k else 0.0) - correction * (k > 0)


def by_hand(n, a, m, correction):
    ks = range(max(0, a + m - n), min(a, m) + 1)
    p = [math.comb(a, k) * math.comb(n - a, m - k) / math.comb(n, m) for k in ks]
    mean = sum(q * f(k, correction) for q, k in zip(p, ks, strict=True))
    mu = sum(q * k for q, k in zip(p, ks, strict=True))
    variance = sum(q * (k - mu) ** 2 for q, k in zip(p, ks, strict=True))
    covariance = sum(q * (k - mu) * (f(k, correction) - mean) for q, k in zip(p, ks, strict=True))
    total = sum(q * (f(k, correction) - mean) ** 2 for q, k in zip(p, ks, strict=True))
    slope = covariance / variance if variance > 0 else 0.0
    return mean, slope, math.sqrt(max(total - slope**2 * variance, 0.0))


@pytest.mark.parametrize("correction", [0.0, 0.5])
def test_moments_of_small_counts_are_exact(correction):
    totals = torch.tensor([[1, 5, 34, 0], [9, 2, 0, 1]]).double()
    load = torch.tensor([[7, 1, 40], [12, 0, 5]]).double()
    got = moments(totals, load, correction)
    for s in range(2):
        n = int(totals[s].sum())
        for u in range(3):
            for c in range(4):
                a, m = int(totals[s, c]), int(load[s, u])
                expected = by_hand(n, a, m, correction) if a and m else (0.0, 0.0, 0.0)
                found = [float(part[s, u, c]) for part in got]
                assert found == pytest.approx(expected, abs=1e-6), (n, a, m)


@pytest.mark.parametrize("n, a, m", [(1000, 400, 150), (3000, 300, 2000), (900, 700, 80), (2000, 1999, 60)])
def test_moments_of_large_counts_agree_with_enumeration(n, a, m):
    got = moments(torch.tensor([[a, n - a]]).double(), torch.tensor([[m]]).double())
    mean, slope, residual = by_hand(n, a, m, 0.0)
    assert float(got.mean[0, 0, 0]) == pytest.approx(mean, abs=2e-4)
    assert float(got.slope[0, 0, 0]) == pytest.approx(slope, abs=2e-3)
    assert float(got.residual_sd[0, 0, 0]) == pytest.approx(residual, rel=0.06, abs=2e-3)


@pytest.mark.parametrize("weights", [[1, 1], [9, 1], [5, 3, 2, 2, 1], [1 / (i + 1) for i in range(200)]])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_variance_of_a_sum_is_that_of_shuffles(weights, share):
    generator = torch.Generator().manual_seed(0)
    n = 600
    classes = torch.multinomial(torch.tensor(weights).double(), n, replacement=True, generator=generator)
    totals = torch.bincount(classes, minlength=len(weights)).double()
    m = int(share * n)
    load = torch.tensor([[m]]).double()
    shuffled = torch.stack([classes[torch.randperm(n, generator=generator)[:m]] for _ in range(1500)])
    k = torch.zeros(1500, len(weights)).double().scatter_add_(1, shuffled, torch.ones(shuffled.shape).double())
    drawn = torch.special.xlogy(k, k).sum(-1)
    got = moments(totals[None], load)
    assert float(got.mean.sum()) == pytest.approx(float(drawn.mean()), abs=4 * float(drawn.std()) / 1500**0.5)
    sd = float(sum_variance(totals[None], load, got.slope, got.residual_sd).sqrt())
    assert sd == pytest.approx(float(drawn.std()), rel=0.1)
