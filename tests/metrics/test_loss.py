"""The loss by document equals the plain mean, and itself in halves."""

import pytest
import torch

from slms.metrics.functional import document_loss
from slms.metrics.loss import DocumentLoss


def batch(seed, n=200):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=g) * 5, torch.randint(0, 30, (n,), generator=g), torch.rand(n, generator=g) < 0.9


def test_value_is_the_mean_over_tokens_and_halves_merge():
    whole, left, right = DocumentLoss(), DocumentLoss(), DocumentLoss()
    for seed in range(4):
        whole.update(*batch(seed))
        (left if seed < 2 else right).update(*batch(seed))
    nll = torch.cat([batch(seed)[0][batch(seed)[2]] for seed in range(4)]).double()
    loss = whole.compute()
    assert loss.value == pytest.approx(float(nll.mean())) and loss.n == len(nll) and loss.low < loss.value < loss.high
    left.merge_state(right)
    assert torch.equal(left.tokens, whole.tokens) and torch.allclose(left.nll, whole.nll, atol=1e-12, rtol=0)
    assert left.compute() == pytest.approx(loss)


def test_documents_are_the_resampled_unit():
    nll, documents, _ = batch(0)
    metric = DocumentLoss()
    metric.update(nll, documents)
    sums = torch.zeros(30).double().index_add_(0, documents, nll.double())
    assert metric.compute() == pytest.approx(document_loss(sums, torch.bincount(documents, minlength=30)))


def test_more_documents_than_slots_are_grouped():
    metric = DocumentLoss(n_slots=7)
    nll, documents, _ = batch(0)
    metric.update(nll, documents)
    assert metric.compute().value == pytest.approx(float(nll.mean())) and metric.nll.shape == (7,)


def test_the_difference_is_paired():
    nll, documents, _ = batch(0)
    ours, other = DocumentLoss(), DocumentLoss()
    ours.update(nll, documents)
    other.update(nll + 0.1, documents)
    difference = ours.minus(other)
    assert difference.value == pytest.approx(-0.1) and difference.high - difference.low < 1e-6
    other.update(nll, documents)
    with pytest.raises(ValueError, match="same documents"):
        ours.minus(other)
