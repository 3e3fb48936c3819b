from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from slms.models import assignment as module
from slms.models.assignment import contributions, learned_assignment


def planted(sizes, n=400, d=6, seed=0, noise=0.2):
    """Neurons of which those of one group fire on the same tokens, as the input says: x, acts, W_out, groups."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    group = group[torch.randperm(len(group), generator=generator)]
    topic = torch.randint(0, len(sizes), (n,), generator=generator)
    x = torch.randn(len(sizes), d, generator=generator)[topic] + 0.1 * torch.randn(n, d, generator=generator)
    acts = torch.randn(n, len(group), generator=generator) * torch.where(topic[:, None] == group, 1.0, noise)
    return x, acts, torch.randn(len(group), 5, generator=generator), group


def top(scores, k):
    """The k greatest of each row, one row at a time."""
    chosen = torch.zeros_like(scores)
    for t, row in enumerate(scores):
        chosen[t, sorted(range(len(row)), key=lambda p: -row[p])[:k]] = 1.0
    return chosen


def ridge(x, y, penalty=0.1):
    """Least squares of y on standardised x with penalty·n rows of its own, float64."""
    z = (x - x.mean(0)).double() / x.double().std(0, correction=0)
    n, d = z.shape
    A = torch.cat([z, (penalty * n) ** 0.5 * torch.eye(d, dtype=z.dtype)])
    b = torch.cat([(y - y.mean(0)).double(), torch.zeros(d, y.shape[1], dtype=z.dtype)])
    return z @ torch.linalg.lstsq(A, b).solution + y.mean(0)


def captured(energy, chosen, labels):
    """The share of the neurons' energy that chosen pathways hold."""
    held = sum(energy[chosen[:, q] > 0][:, labels == q].sum().item() for q in range(chosen.shape[1]))
    return held / energy.sum().item()


def slow_share(x, energy, labels, p, k):
    """The share that a router captures regressed on the sums of its pathways captures, and its choice."""
    sums = torch.stack([energy.sqrt()[:, labels == q].sum(1) for q in range(p)], 1)
    chosen = top(ridge(x, sums).float(), k)
    return captured(energy, chosen, labels), chosen


def test_contributions_and_their_regression_are_those_of_the_definition():
    x, acts, W_out, _ = planted((4, 3, 3), n=60)
    acts[5, 2] = 1e4  # clipped
    found = contributions(x, acts, W_out)
    c = torch.stack([(acts[t, :, None] * W_out).norm(dim=1) / (acts[t] @ W_out).norm() for t in range(60)])
    c = c.clamp_max(c.flatten().quantile(0.9999))
    torch.testing.assert_close(found.energy, c.square())
    torch.testing.assert_close(found.predicted, ridge(x, c).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", [(6, 6, 6), (5, 4, 4, 4)])
def test_it_is_a_router_regressed_on_the_pathways_sums_that_the_share_supposes(sizes):
    x, acts, W_out, _ = planted(sizes)
    of = contributions(x, acts, W_out)
    for seed in range(3):
        labels = torch.from_numpy(learned_assignment(of, np.array(sizes), 2, np.random.default_rng(seed)))
        share, _ = slow_share(x, of.energy, labels, len(sizes), 2)
        predicted = torch.stack([of.predicted[:, labels == q].sum(1) for q in range(len(sizes))], 1)
        assert captured(of.energy, top(predicted, 2), labels) == pytest.approx(share, abs=2e-3)


@pytest.mark.parametrize("k", [1, 2])
def test_neurons_that_fire_together_are_put_together(k):
    sizes = (11, 11, 11, 11)
    x, acts, W_out, group = planted(sizes)
    of = contributions(x, acts, W_out)
    labels = learned_assignment(of, np.array(sizes), k, np.random.default_rng(0))
    if k == 1:
        assert all(len(set(group[labels == q].tolist())) == 1 for q in range(4))
    best, _ = slow_share(x, of.energy, group, 4, k)
    assert slow_share(x, of.energy, torch.from_numpy(labels), 4, k)[0] >= best - 5e-3


def test_no_assignment_of_few_neurons_captures_much_more():
    """All 35 ways to halve 8 neurons, by the slow definition, and six seeds' best."""
    x, acts, W_out, _ = planted((4, 4), n=200, noise=0.7)
    of = contributions(x, acts, W_out)
    shares = []
    for half in combinations(range(1, 8), 3):
        labels = torch.ones(8, dtype=torch.long)
        labels[[0, *half]] = 0
        shares.append(slow_share(x, of.energy, labels, 2, 1)[0])
    found = [learned_assignment(of, np.array([4, 4]), 1, np.random.default_rng(seed)) for seed in range(6)]
    found = [slow_share(x, of.energy, torch.from_numpy(labels), 2, 1)[0] for labels in found]
    assert max(found) >= max(shares) - 1e-3
    assert min(found) > np.median(shares)


def test_the_share_rises_until_a_slow_round_cannot_raise_it():
    sizes = np.array([9, 8, 8, 8])
    x, acts, W_out, _ = planted(tuple(sizes), noise=0.6)
    of = contributions(x, acts, W_out)
    labels = learned_assignment(of, sizes, 2, np.random.default_rng(0))
    share, chosen = slow_share(x, of.energy, torch.from_numpy(labels), 4, 2)
    gain = np.repeat((of.energy.T @ chosen).double().numpy(), sizes, axis=1)
    again = np.repeat(np.arange(4), sizes)[linear_sum_assignment(gain, maximize=True)[1]]
    assert captured(of.energy, chosen, torch.from_numpy(again)) >= share - 1e-6
    assert slow_share(x, of.energy, torch.from_numpy(again), 4, 2)[0] <= share + 1e-3
    other = [np.random.default_rng(seed).permutation(np.repeat(np.arange(4), sizes)) for seed in range(20)]
    assert share > max(slow_share(x, of.energy, torch.from_numpy(o), 4, 2)[0] for o in other)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("sizes", [(8, 8, 7, 7, 7), (1, 1, 1, 1, 1), (2, 2, 2, 1, 1)])
def test_sizes_are_kept_and_the_seed_decides(sizes, k):
    x, acts, W_out, _ = planted(sizes, n=50)
    acts[:, :2] = 0.0
    of = contributions(x, acts, W_out)
    first, again = (learned_assignment(of, np.array(sizes), k, np.random.default_rng(1)) for _ in range(2))
    assert np.bincount(first, minlength=5).tolist() == list(sizes)
    assert (first == again).all()


def test_silent_neurons_and_constant_inputs_make_no_nan():
    for x, acts in ((torch.ones(9, 3), torch.randn(9, 8)), (torch.randn(9, 3), torch.zeros(9, 8))):
        of = contributions(x, acts, torch.randn(8, 4))
        assert all(part.isfinite().all() for part in of)
        labels = learned_assignment(of, np.array([4, 4]), 1, np.random.default_rng(0))
        assert np.bincount(labels).tolist() == [4, 4]


def test_sinkhorn_has_the_sums_asked_for_and_ends_in_the_optimal_assignment():
    gain, sizes = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), np.array([4, 3, 2])
    prices = torch.ones(3, dtype=torch.float64)
    for temperature in np.geomspace(1, 0.02, 40):
        shares, prices = module._sinkhorn(gain / temperature, torch.from_numpy(sizes), prices)
        torch.testing.assert_close(shares.sum(1), torch.ones(9))
        if temperature == 1:
            torch.testing.assert_close(shares.sum(0), torch.from_numpy(sizes).float(), atol=1e-3, rtol=0)
    wide = np.repeat(gain.double().numpy(), sizes, axis=1)
    best = np.repeat(np.arange(3), sizes)[linear_sum_assignment(wide, maximize=True)[1]]
    assert (shares.argmax(1).numpy() == best).all()
