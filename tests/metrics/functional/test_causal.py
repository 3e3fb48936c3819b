"""Causal specialization, against what a planted effect must give."""

import pytest
import torch

from slms.metrics.functional.causal import causal_specialization

G, U, C, R = 16, 3, 5, 40


def tables(effect: torch.Tensor, noise: float, per_class: int = 60, seed: int = 0):
    """Sums and totals [1 + R, G, ...] of tokens whose loss rises by effect[u, class] + noise; row 0 true labels."""
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
    return causal_specialization(sums[0], totals[0], sums[1:], totals[1:])


def test_units_that_serve_one_class():
    effect = torch.zeros(U, C)
    effect[0, 3] = effect[1, 1] = effect[2, 4] = 0.5
    found = tables(effect, noise=0.1)
    assert found.best.tolist() == [3, 1, 4] and found.n_classes == C
    # all of the rise is on one class; permuted labels spread it over five
    assert found.value == pytest.approx(1 - 1 / C, abs=0.03) and found.null_mean == pytest.approx(1 / C, abs=0.03)
    assert torch.allclose(found.units, torch.tensor([0.8] * 3).double(), atol=0.05) and found.z > 20
    assert found.low < found.value < found.high


def test_units_that_serve_all_classes_alike_score_nothing():
    values = [tables(torch.full((U, C), 0.2), noise=1.0, per_class=10, seed=seed) for seed in range(12)]
    zs = torch.tensor([found.z for found in values])
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
    found = causal_specialization(sums, totals, sums[None].repeat(3, 1, 1, 1), totals[None].repeat(3, 1, 1))
    assert found.value == pytest.approx(0) and found.null_mean == pytest.approx(1 / 3)


def test_too_little_says_nothing_and_shapes_are_checked():
    sums, totals = torch.rand(4, 2, 3), torch.full((4, 3), 5.0)
    found = causal_specialization(sums, totals, sums[None], totals[None])
    assert found.n_classes == 0 and found.value != found.value and found.units.isnan().all()
    with pytest.raises(ValueError, match="must be"):
        causal_specialization(sums, totals[:, :2], sums[None], totals[None])
