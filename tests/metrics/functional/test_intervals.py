"""Intervals against known sampling distributions."""

import pytest
import torch

from slms.metrics.functional import (
    beyond_control,
    document_loss,
    jackknife,
    joint_counts,
    paired_difference,
    paired_over_seeds,
    specialization_index,
)
from slms.metrics.functional.intervals import proportion, student_t


@pytest.mark.parametrize(
    "degrees, quantile", [(1, 12.706), (2, 4.303), (3, 3.1824), (7, 2.3646), (15, 2.1314), (63, 1.9983)]
)
def test_student_quantile(degrees, quantile):
    assert student_t(degrees) == pytest.approx(quantile, abs=0.03)


def test_jackknife_of_a_mean_is_its_standard_error():
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).double()
    leave_one_out = (x.sum(0) - x) / 15
    expected = student_t(15) * x.std(0) / 16**0.5
    assert torch.allclose(jackknife(leave_one_out), expected)
    assert jackknife(x[:1]).isnan().all()


def documents(d, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 50, (d,), generator=generator)
    rate = 2.0 + shift + 0.4 * torch.randn(d, generator=generator)
    return rate * tokens, tokens


def test_loss_is_the_ratio_and_its_interval_covers():
    nll, tokens = documents(200, 0)
    loss = document_loss(nll, tokens)
    assert loss.value == pytest.approx(float(nll.sum() / tokens.sum())) and loss.n == int(tokens.sum())
    covered = 0
    for seed in range(60):
        loss = document_loss(*documents(100, seed), n_resamples=300)
        covered += loss.low <= 2.0 <= loss.high
    assert 52 <= covered <= 60, covered


def test_paired_interval_is_narrower_than_the_two_apart():
    nll, tokens = documents(150, 1)
    other = nll - 0.05 * tokens + 0.5 * torch.randn(150, generator=torch.Generator().manual_seed(9))
    difference = paired_difference(nll, other, tokens)
    assert difference.low <= difference.value <= difference.high
    assert difference.value == pytest.approx(0.05, abs=0.01) and difference.low > 0
    alone = document_loss(nll, tokens)
    assert difference.high - difference.low < (alone.high - alone.low) / 3


def test_a_document_without_tokens_changes_nothing():
    nll, tokens = documents(30, 2)
    padded = document_loss(torch.cat([nll, torch.zeros(5)]), torch.cat([tokens, torch.zeros(5).long()]))
    assert padded == document_loss(nll, tokens)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="tokens are all 0"):
        document_loss(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="same documents"):
        paired_difference(torch.zeros(2), torch.zeros(3), torch.ones(2))
    with pytest.raises(ValueError, match="must be \\[documents\\]"):
        document_loss(torch.zeros(2), torch.ones(3))


def test_a_bootstrap_of_documents_sees_structure_in_repeats_and_the_jackknife_does_not():
    generator = torch.Generator().manual_seed(0)
    n, d = 2000, 40
    units = torch.rand(n, 8, generator=generator) < 0.25
    classes = torch.randint(0, 50, (n,), generator=generator)
    document = torch.arange(n) // (n // d)
    counts, totals = joint_counts(units, classes, 50, document % 16, 16)
    score = specialization_index(counts, totals)
    assert score.low <= 0 <= score.high
    by_document, totals = joint_counts(units, classes, 50, document, d)
    picks = torch.randint(0, d, (20, d), generator=generator)
    repeated = [specialization_index(by_document[p].sum(0)[None], totals[p].sum(0)[None]).value for p in picks]
    assert min(repeated) > score.high, (min(repeated), score.high)


def test_proportion_is_wilsons_interval():
    hits = torch.tensor([1.0] * 81 + [0.0] * 182)
    found = proportion(hits)
    # Newcombe 1998, table I: 81 of 263
    assert (found.value, found.low, found.high, found.n) == (
        pytest.approx(0.308, abs=5e-4),
        pytest.approx(0.2553, abs=5e-5),
        pytest.approx(0.3662, abs=5e-5),
        263,
    )
    none = proportion(torch.zeros(20))
    assert none.low == pytest.approx(0, abs=1e-12) and none.high == pytest.approx(0.1611, abs=5e-5)  # 0 of 20
    assert proportion(torch.zeros(0)).n == 0


def test_one_document_has_no_interval():
    found = document_loss(torch.tensor([3.0, 0.0]), torch.tensor([2, 0]))
    assert found.value == 1.5 and found.low != found.low and found.high != found.high


def _means_of_groups(noise, common, generator):
    """A mean over 16 groups of documents, and the same without each group."""
    x = common + noise * torch.randn(16, generator=generator).double()
    return x.mean(), (x.sum() - x) / 15


@pytest.mark.parametrize("of_seeds, of_documents", [(1.0, 0.2), (0.1, 1.0), (0.5, 1.0)])
def test_a_control_with_one_more_seed_lies_within_the_interval(of_seeds, of_documents):
    """95 % of 400 times, for three controls or six, whatever varies more, documents (that all share) or seeds."""
    generator = torch.Generator().manual_seed(0)
    for n_seeds in (3, 6):
        inside = 0
        for _ in range(400):
            common = torch.randn(16, generator=generator).double()
            level = of_seeds * torch.randn(n_seeds + 1, generator=generator).double()
            found = [_means_of_groups(of_documents, common + one, generator) for one in level]
            values, left_out = torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])
            beyond = beyond_control(float(values[0]), left_out[0], values[1:], left_out[1:])
            inside += beyond.difference_low <= 0 <= beyond.difference_high
        assert 0.92 <= inside / 400 <= 0.995


def test_difference_to_a_control_by_hand():
    left_out, controls = torch.tensor([0.5, 0.7]), torch.tensor([0.1, 0.3])
    found = beyond_control(0.6, left_out, controls, torch.tensor([[0.1, 0.1], [0.3, 0.3]]))
    assert (found.control, found.difference) == (pytest.approx(0.2), pytest.approx(0.4))
    assert found.control_sd == pytest.approx(0.02**0.5)
    half = student_t(1) * (0.5 * 0.02 + 0.02 * 1.5) ** 0.5  # 1 degree of freedom each, 1.6 by Welch and Satterthwaite
    assert found.difference_high == pytest.approx(0.4 + half)
    one = beyond_control(0.6, left_out, controls[:1], torch.tensor([[0.1, 0.1]]))
    assert one.difference == pytest.approx(0.5) and one.difference_low != one.difference_low


def arms(s: int, d: int, seed_sd: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed differences [s, d] of two arms without a true one, and tokens: documents, seeds and both together vary."""
    tokens = torch.randint(50, 400, (d,), generator=generator).double()
    of_seed = seed_sd / d**0.5 * torch.randn(s, 1, generator=generator).double()
    per_token = of_seed + torch.randn(d, generator=generator) + 0.3 * torch.randn(s, d, generator=generator)
    return per_token * tokens, tokens


@pytest.mark.parametrize("s, seed_sd, least", [(3, 0.0, 0.91), (3, 4.0, 0.87), (5, 1.0, 0.91)])
def test_intervals_over_seeds_and_documents_cover_the_truth(s, seed_sd, least):
    """As often as they say, within sampling (± .03 of 200), also where seeds differ four times as much."""
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for _ in range(200):
        difference, tokens = arms(s, 60, seed_sd, generator)
        found = paired_over_seeds(difference, torch.zeros_like(difference), tokens, n_resamples=300)
        hits += found.low <= 0 <= found.high
    assert least <= hits / 200 <= 0.99


def test_the_difference_of_seeds_is_that_of_their_means():
    generator = torch.Generator().manual_seed(2)
    a, tokens = arms(4, 30, 1.0, generator)
    b = torch.randn(4, 30, generator=generator).double() * tokens
    found = paired_over_seeds(a, b, tokens)
    by_hand = torch.stack([(x - y).sum() / tokens.sum() for x, y in zip(a, b, strict=True)]).mean()
    assert found.value == pytest.approx(float(by_hand)) and found.n == int(tokens.sum())
    assert found == paired_over_seeds(a, b, tokens)  # its resamples have a seed
    swapped = paired_over_seeds(b, a, tokens)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_its_spread_is_that_of_the_two_parts():
    """The variance of documents of the mean over seeds, and that of the seeds; by the formulas, not by resampling."""
    a, tokens = arms(6, 80, 3.0, torch.Generator().manual_seed(3))
    tokens = torch.full_like(tokens, 100.0)
    found = paired_over_seeds(a, torch.zeros_like(a), tokens, n_resamples=20_000)
    per_token = a / 100
    seeds = per_token.mean(1).var() / 6
    documents = per_token.mean(0).var() / 80
    degrees = (seeds + documents) ** 2 / (seeds**2 / 5 + documents**2 / 79)
    half = student_t(int(degrees)) * float((seeds + documents) ** 0.5)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)


def test_one_seed_is_over_documents_alone_and_shapes_are_checked():
    a, tokens = arms(1, 20, 0.0, torch.Generator().manual_seed(4))
    assert paired_over_seeds(a, a * 0, tokens) == paired_difference(a[0], a[0] * 0, tokens, 2000)
    with pytest.raises(ValueError, match="must be \\[seeds, documents\\] twice and \\[documents\\]"):
        paired_over_seeds(a[0], a[0], tokens)
    with pytest.raises(ValueError, match="more than 0 in every document"):
        paired_over_seeds(a, a, tokens * 0)
