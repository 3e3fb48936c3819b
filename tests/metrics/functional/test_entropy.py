"""Entropy estimators against their formulas and against known distributions."""

import math

import pytest
import torch

from slms.metrics.functional import entropy


def chao_shen(counts):
    n, singletons = sum(counts), sum(c == 1 for c in counts)
    coverage = 1 - min(singletons, n - 1) / n
    value = 0.0
    for c in counts:
        if c:
            p = coverage * c / n
            value -= p * math.log(p) / (1 - (1 - p) ** n)
    return value


def plug_in(counts):
    return -sum(c / sum(counts) * math.log(c / sum(counts)) for c in counts if c)


@pytest.mark.parametrize("counts", [[3, 1, 0, 6, 1], [1, 1, 1], [4], [1], [100, 50, 1]])
def test_formulas(counts):
    table = torch.tensor([counts, counts])
    seen = sum(c > 0 for c in counts)
    expected = {
        "plug_in": plug_in(counts),
        "miller_madow": plug_in(counts) + (seen - 1) / (2 * sum(counts)),
        "chao_shen": chao_shen(counts),
    }
    for estimator, value in expected.items():
        assert entropy(table, estimator).tolist() == pytest.approx([value] * 2, abs=1e-12), estimator


def test_nothing_counted_is_nan():
    assert entropy(torch.tensor([[0, 0], [1, 1]])).isnan().tolist() == [True, False]


def zipf(v):
    p = 1 / torch.arange(1, v + 1).double()
    return p / p.sum()


@pytest.mark.parametrize(
    "n, plug_in_bias, miller_madow_bias, chao_shen_bias",
    [(100, -1.73, -1.39, -0.89), (1000, -0.62, -0.42, -0.18), (10_000, -0.12, -0.05, 0.07)],
)
def test_bias_on_zipf_tokens_is_as_documented(n, plug_in_bias, miller_madow_bias, chao_shen_bias):
    p = zipf(2048)
    truth = -(p * p.log()).sum()
    generator = torch.Generator().manual_seed(1)
    draws = torch.multinomial(p.expand(20, -1), n, replacement=True, generator=generator)
    counts = torch.zeros(20, 2048).scatter_add_(1, draws, torch.ones(20, n))
    for estimator, bias in (
        ("plug_in", plug_in_bias),
        ("miller_madow", miller_madow_bias),
        ("chao_shen", chao_shen_bias),
    ):
        assert entropy(counts, estimator).mean() - truth == pytest.approx(bias, abs=0.06), estimator


def test_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="'jackknife'"):
        entropy(torch.ones(3), "jackknife")
