"""Activation sparsity against loops and against the formulas of the prototype."""

import math

import pytest
import torch

from slms.metrics.functional import (
    activation_sparsity,
    activation_sparsity_legacy,
    cett_threshold,
    dropped_share,
    largest_within,
    sparsity_per_token,
)


def by_hand(e, mass):
    """Gini as mean absolute difference, the others from their definitions."""
    f, total = len(e), sum(e)
    gini = sum(abs(x - y) for x in e for y in e) / (2 * f * total)
    hoyer = (math.sqrt(f) - total / math.sqrt(sum(x * x for x in e))) / (math.sqrt(f) - 1)
    largest, held, kept = sorted(e, reverse=True), 0.0, 0
    while held < mass * total - 1e-9:
        held, kept = held + largest[kept], kept + 1
    return [gini, hoyer, kept / f, total**2 / (f * sum(x * x for x in e))]


@pytest.mark.parametrize("f", [2, 7, 64])
@pytest.mark.parametrize("mass", [0.5, 0.9])
def test_measures_are_those_of_their_definitions(f, mass):
    g = torch.Generator().manual_seed(f)
    a = torch.nn.functional.relu(torch.randn(9, f, generator=g)) - 0.1 * (torch.rand(9, f, generator=g) < 0.2)
    norm = torch.rand(f, generator=g) + 0.5
    found = sparsity_per_token(a, norm, mass)
    for row, activations in zip(found.tolist(), a, strict=True):
        if activations.abs().sum() == 0:
            continue
        assert row[:4] == pytest.approx(by_hand((activations.abs() * norm).double().tolist(), mass), abs=1e-5)
        assert row[4] == pytest.approx(float((activations == 0).double().mean()))


def test_extremes():
    f = 50
    equal = activation_sparsity(torch.full((3, f), -2.0))
    assert [float(x) for x in equal] == pytest.approx([0, 0, 0.9, 1, 0], abs=1e-6)
    one = activation_sparsity(torch.nn.functional.one_hot(torch.tensor([4, 7]), f).float())
    assert [float(x) for x in one] == pytest.approx([1 - 1 / f, 1, 1 / f, 1 / f, 1 - 1 / f], abs=1e-6)


def test_a_silent_token_counts_for_zeros_only():
    a = torch.tensor([[1.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    both, first = activation_sparsity(a), activation_sparsity(a[:1])
    assert [float(x) for x in both[:4]] == pytest.approx([float(x) for x in first[:4]])
    assert float(both.zeros) == pytest.approx((0.25 + 1) / 2)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_legacy_is_a_transcription_of_the_prototype(threshold):
    act = torch.randn(11, 5, 8, generator=torch.Generator().manual_seed(0))
    found = activation_sparsity_legacy(act, threshold)
    frac = (act > threshold).float().mean().item()
    a = act.clamp(min=0)
    pr = (a.sum() ** 2 / (a**2).sum()).item()
    assert float(found.frac) == pytest.approx(frac) and float(found.pr) == pytest.approx(pr, rel=1e-5)


def mlp(n=30, f=40, d=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, f, generator=g).exp() - 1, torch.randn(f, d, generator=g) * torch.rand(f, 1, generator=g)


def test_cett_is_that_of_a_loop():
    a, w = mlp()
    cett, density = dropped_share(a, w, 0.8)
    for i in range(len(a)):
        drop = [j for j in range(40) if abs(float(a[i, j])) * float(w[j].norm()) < 0.8]
        lost = sum((a[i, j] * w[j] for j in drop), torch.zeros(12)).norm() / (a[i] @ w).norm()
        assert float(cett[i]) == pytest.approx(float(lost), abs=1e-5)
        assert float(density[i]) == pytest.approx(1 - len(drop) / 40)


@pytest.mark.parametrize("target", [0.05, 0.2, 0.6])
def test_the_threshold_is_the_largest_within_the_target(target):
    a, w = mlp()
    threshold = cett_threshold(a, w, target)
    assert float(dropped_share(a, w, threshold)[0].mean()) <= target
    step = sorted({float(x) for x in (a.abs() * w.norm(dim=-1)).flatten() if x > threshold})[2]
    assert float(dropped_share(a, w, step)[0].mean()) > target


def test_a_target_of_0_drops_only_silent_neurons_and_a_large_one_nearly_all():
    a, w = mlp()
    a[:, :10] = 0
    assert float(dropped_share(a, w, cett_threshold(a, w, 0.0))[1].mean()) == pytest.approx(0.75)
    assert float(dropped_share(a, w, cett_threshold(a, w, 1e9))[1].mean()) < 0.01
    with pytest.raises(ValueError, match="target is -1"):
        cett_threshold(a, w, -1)


def test_bisection():
    assert largest_within(lambda x: x**2, 2.0, 0.0, 4.0, steps=40) == pytest.approx(2**0.5)
    assert largest_within(lambda x: x, 9.0, 0.0, 4.0) == 4.0
    assert largest_within(lambda x: x + 10, 9.0, 0.0, 4.0) == pytest.approx(0.0, abs=1e-3)
