"""Figures of a coder against their definitions; the sums against one process."""

import pytest
import torch
from torch.testing import assert_close

from slms.sae.quality import CoderQuality
from slms.sae.sparse import Picks

N, D, S = 60, 4, 10


@pytest.fixture
def data():
    torch.manual_seed(0)
    y = torch.randn(N, D) + 50.0  # a large mean, which a careless variance would lose
    documents = torch.arange(N) // 12
    mask = torch.rand(N, S) < 0.3
    mask[:, 3] = False
    picks = Picks.of_flat(mask.flatten().nonzero()[:, 0], mask.shape)
    return y, documents, mask, picks, torch.rand(len(picks.indices)) + 0.1


def test_mean_predictor_scores_one_and_a_perfect_one_zero(data):
    y, documents, _, picks, values = data
    for output, expected in ((y.mean(0).expand_as(y), 1.0), (y, 0.0)):
        quality = CoderQuality(D, S)
        quality.update(y, output, picks, values, documents)
        assert_close(float(quality.fvu()), expected, rtol=1e-6, atol=1e-9)


def test_streamed_fvu_l0_dead_and_density(data):
    y, documents, mask, picks, values = data
    output = y + 0.3 * torch.randn_like(y)
    values[0] = 0.0  # picked, but not in use
    on = mask.clone()
    on.view(-1)[picks.flat[0]] = False
    quality = CoderQuality(D, S)
    for part in (slice(0, 17), slice(17, N)):
        some = mask[part]
        piece = Picks.of_flat(some.flatten().nonzero()[:, 0], some.shape)
        begin = int(mask[: part.start].sum())
        quality.update(y[part], output[part], piece, values[begin : begin + len(piece.indices)], documents[part])
    quality.update_losses(documents, ce=torch.ones(N), ce_clean=torch.zeros(N), ce_zero=torch.full((N,), 4.0))
    found = quality.compute()
    exact = y.double()
    wanted = (exact - output.double()).square().sum() / (exact - exact.mean(0)).square().sum()
    assert_close(found.fvu.value, float(wanted), rtol=1e-9, atol=0)
    assert_close(found.l0.value, float(on.sum() / N))
    assert_close(found.density.double(), on.double().mean(0))
    assert found.dead == 0.1
    assert found.fvu.low < found.fvu.value < found.fvu.high
    assert found.fvu.n == N


def test_recovered_share_and_its_interval(data):
    _, documents, _, _, _ = data
    torch.manual_seed(1)
    clean = torch.rand(N)
    ce, zero, mean = clean + 0.1 * torch.rand(N), clean + 3 + torch.rand(N), clean + 1 + torch.rand(N)
    quality = CoderQuality(D, S)
    quality.update(
        torch.randn(N, D), torch.zeros(N, D), Picks.of_rows(torch.zeros(N, 1).long(), S), torch.ones(N), documents
    )
    quality.update_losses(documents, ce=ce, ce_clean=clean, ce_zero=zero, ce_mean=mean, kl=ce - clean)
    found = quality.compute()
    for name, ablated in {"zero": zero, "mean": mean}.items():
        wanted = (ablated.mean() - ce.mean()) / (ablated.mean() - clean.mean())
        assert_close(found.recovered[name].value, float(wanted), rtol=1e-5, atol=0)
        assert found.recovered[name].low <= found.recovered[name].value <= found.recovered[name].high
    assert_close(found.kl.value, float((ce - clean).mean()), rtol=1e-5, atol=0)
    assert_close(float(quality.recovered("mean")), found.recovered["mean"].value)


def test_interval_covers_documents_not_tokens():
    """Ten documents of constant error: tokens repeat it and must not narrow the interval."""
    torch.manual_seed(0)
    documents = torch.arange(1000) // 100
    y = torch.randn(1000, 1)
    output = y + (torch.arange(10.0) - 4.5)[documents][:, None]
    quality = CoderQuality(1, 1)
    quality.update(y, output, Picks.of_rows(torch.zeros(1000, 1).long(), 1), torch.ones(1000), documents)
    found = quality.compute().fvu
    assert found.high - found.low > 0.5 * found.value
