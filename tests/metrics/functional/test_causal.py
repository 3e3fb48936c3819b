"""Causal specialization, against what a planted effect must give."""

import pytest
import torch

from slms.metrics.functional.causal import (
    _shares,
    beyond_random_sets,
    causal_specialization,
    smallest_effect,
)
from slms.metrics.functional.intervals import student_t

G, U, C, R = 16, 3, 5, 40


def tables(effect: torch.Tensor, noise: float, per_class: int = 60, seed: int = 0):
    """The score of tokens of G documents whose loss rises by effect[u, class] + noise; R permutations of the labels."""
    generator = torch.Generator().manual_seed(seed)
    n = G * C * per_class
    classes = torch.arange(n) % C
    groups = torch.arange(n) // C % G
    rise = effect[:, classes] + noise * torch.randn(U, n, generator=generator)
    rows = []
    for r in range(1 + R):
        label = classes if r == 0 else classes[torch.randperm(n, generator=generator)]
        mine = (torch.nn.functional.one_hot(groups)[:, :, None] * torch.nn.functional.one_hot(label)[:, None]).double()
        rows.append((torch.einsum("un,ngc->guc", rise.double(), mine), mine.sum(0)))
    sums, totals = (torch.stack(part) for part in zip(*rows, strict=True))
    return causal_specialization(sums[0], totals[0], halves(sums[1:]), halves(totals[1:]))


def halves(tables: torch.Tensor) -> torch.Tensor:
    """Tables [r, g, ...] as [r, 2, ...], by the parity of the document."""
    return torch.stack([tables[:, 0::2].sum(1), tables[:, 1::2].sum(1)], 1)


def test_units_that_serve_one_class():
    effect = torch.zeros(U, C)
    effect[0, 3] = effect[1, 1] = effect[2, 4] = 0.5
    found = tables(effect, noise=0.1)
    assert found.best.tolist() == [3, 1, 4] and found.n_classes == C
    # all of the rise is on one class; permuted labels spread it over five
    assert found.value == pytest.approx(1 - 1 / C, abs=0.03) and found.null_mean == pytest.approx(1 / C, abs=0.03)
    assert torch.allclose(found.units, torch.tensor([0.8] * 3).double(), atol=0.05)
    assert found.low < found.value < found.high


def test_units_that_serve_all_classes_alike_score_nothing():
    values = [tables(torch.full((U, C), 0.2), noise=1.0, per_class=10, seed=seed) for seed in range(12)]
    zs = torch.tensor([found.value / found.null_sd for found in values])
    assert abs(zs.mean()) < 1 and (zs.abs() < 3).sum() >= 11  # the null leans to the right
    covered = sum(found.low <= 0 <= found.high for found in values)
    assert covered >= 9
    # the plain share of the best class, chosen and read on the same tokens, would be taken for specialization
    assert all(found.null_mean < 1 / C + 0.1 for found in values)


def test_frequency_is_no_specialization():
    """A class ten times as frequent gets ten times the summed increase, but the same mean."""
    sums, totals = torch.ones(4, 1, 3).double() * 100, torch.ones(4, 3).double() * 100
    sums[..., 0] *= 10
    totals[:, 0] *= 10
    found = causal_specialization(
        sums, totals, halves(sums[None].repeat(3, 1, 1, 1)), halves(totals[None]).repeat(3, 1, 1)
    )
    assert found.value == pytest.approx(0) and found.null_mean == pytest.approx(1 / 3)


def test_too_little_says_nothing_and_shapes_are_checked():
    sums, totals = torch.rand(4, 2, 3), torch.full((4, 3), 5.0)
    found = causal_specialization(sums, totals, halves(sums[None]), halves(totals[None]))
    assert found.n_classes == 0 and found.value != found.value and found.units.isnan().all()
    with pytest.raises(ValueError, match="must be"):
        causal_specialization(sums, totals[:, :2], halves(sums[None]), halves(totals[None]))


def slow_share(sums, totals) -> float:
    """Σ on the best class over Σ on all, from the definition, a unit, a half and a class at a time."""
    on_best = everything = 0.0
    d, n_units, n_classes = sums.shape
    for unit in range(n_units):
        for parity in (0, 1):
            mean = []
            for half in (parity, 1 - parity):
                rows = range(half, d, 2)
                mean.append(
                    [sum(sums[i, unit, c] for i in rows) / sum(totals[i, c] for i in rows) for c in range(n_classes)]
                )
            best = max(range(n_classes), key=lambda c: mean[0][c])
            on_best += max(0.0, mean[1][best])
            everything += sum(max(0.0, x) for x in mean[1])
    return on_best / everything


def score_of(effect, n_documents=40, noise=0.4, seed=0):
    """A score of units [u, c] whose effect on each document deviates by noise; the null is 0."""
    generator = torch.Generator().manual_seed(seed)
    totals = torch.full((n_documents, effect.shape[1]), 50.0).double()
    per_token = effect + noise * torch.randn(n_documents, *effect.shape, generator=generator)
    sums = per_token.double() * 50
    return causal_specialization(sums, totals, halves(sums[None]), halves(totals[None])), sums, totals


def test_the_share_and_its_resamples_are_the_definition():
    found, sums, totals = score_of(torch.rand(4, 3), n_documents=9)
    assert found.ratio == pytest.approx(slow_share(sums.numpy(), totals.numpy()), rel=1e-9)
    assert found.value == pytest.approx(found.ratio - found.null_mean)
    generator = torch.Generator().manual_seed(0)  # the order of the draws: the even documents, then the odd ones
    drawn = [torch.randint(n, (500, n), generator=generator) for n in (5, 4)]
    for b in (0, 17):
        first, second = (sums[parity::2][rows[b]].sum(0) / (50 * len(rows[b])) for parity, rows in enumerate(drawn))
        on_best, rise = _shares(first, second)
        assert torch.allclose(found.resampled[0][b], on_best) and torch.allclose(found.resampled[1][b], rise)


def test_beyond_random_sets_is_the_formula():
    units, random = (score_of(torch.rand(n, 4), seed=n)[0] for n in (6, 9))
    found = beyond_random_sets(units, random)
    without = [
        float((random.on_best.sum() - random.on_best[i]) / (random.rise.sum() - random.rise[i])) for i in range(9)
    ]
    mean = sum(without) / 9
    of_sets = 8 / 9 * sum((x - mean) ** 2 for x in without)
    layers = [s.resampled[0].sum(1) / s.resampled[1].sum(1) for s in (units, random)]
    of_documents = float((layers[0] - layers[1]).var())
    parts = (of_documents, 39), (of_sets * (1 + 9 / 6), 8)
    total = sum(v for v, _ in parts)
    degrees = int(total**2 / sum(v**2 / f for v, f in parts))
    half = student_t(degrees) * total**0.5
    assert found.difference == pytest.approx(units.value - random.value)
    assert (found.difference_high - found.difference_low) / 2 == pytest.approx(half)
    assert found.control_sd == pytest.approx(of_sets**0.5)


def test_units_like_random_sets_are_seldom_told_apart_and_the_detectable_effect_is_seen():
    """Sets differ in how far they serve a class. Of units drawn like them few are told apart, of units that are further
    by the smallest effect that is promised most are."""
    generator = torch.Generator().manual_seed(3)

    def drawn(n, more=0.0):
        own = torch.rand(n, generator=generator) * 0.4 + more
        effect = torch.full((n, 4), 0.25)
        effect[:, 0] = 0.25 + own
        return effect

    false = seen = 0
    n = 40
    for seed in range(n):
        random, units = score_of(drawn(16), seed=2 * seed)[0], score_of(drawn(16), seed=2 * seed + 1)[0]
        apart = beyond_random_sets(units, random)
        false += not apart.difference_low <= 0 <= apart.difference_high
        least = smallest_effect(random, 16)
        further = apart.difference_high - apart.difference + 1e-9  # of one comparison
        assert 1.1 * further < least < 2.5 * further
        seen += apart.difference + least > further
    assert false <= 6 and seen >= 0.6 * n
