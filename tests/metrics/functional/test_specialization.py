"""Specialization index against analytic values and loops."""

import math

import pytest
import torch

from slms.metrics.functional import event_information, joint_choices, joint_counts, mutual_information
from slms.metrics.functional import specialization_index as si


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def loop_information(unit, classes, strata):
    """I(U; C | S) from the definition, over lists."""
    n, total = len(unit), 0.0
    for s in set(strata):
        rows = [i for i in range(n) if strata[i] == s]
        for u in (0, 1):
            for c in set(classes):
                joint = sum(unit[i] == u and classes[i] == c for i in rows)
                if joint:
                    of_u, of_c = sum(unit[i] == u for i in rows), sum(classes[i] == c for i in rows)
                    total += joint / n * math.log(joint * len(rows) / (of_u * of_c))
    return total


def test_mutual_information_is_that_of_a_loop():
    g = generator()
    units = torch.rand(80, 3, generator=g) < torch.tensor([0.2, 0.5, 0.9])
    classes, strata = torch.randint(0, 4, (80,), generator=g), torch.randint(0, 3, (80,), generator=g)
    counts, totals = (table.double() for table in joint_counts(units, classes, 4, strata, 3))
    expected = [loop_information(units[:, u].int().tolist(), classes.tolist(), strata.tolist()) for u in range(3)]
    assert mutual_information(counts, totals).tolist() == pytest.approx(expected)
    pooled = counts.sum(0, keepdim=True), totals.sum(0, keepdim=True)
    expected = [loop_information(units[:, u].int().tolist(), classes.tolist(), [0] * 80) for u in range(3)]
    assert mutual_information(*pooled).tolist() == pytest.approx(expected)


def test_event_information_is_events_times_kl():
    counts, totals = torch.tensor([[[6, 2], [0, 3]]]).double(), torch.tensor([[10, 10]]).double()
    information, bound = event_information(counts, totals)
    kl = [0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5), math.log(2)]
    assert information.tolist() == pytest.approx([8 * kl[0], 3 * kl[1]])
    assert bound.tolist() == pytest.approx([8 * math.log(2), 3 * math.log(2)])


@pytest.mark.parametrize("n", [1000, 10_000, 100_000])
@pytest.mark.parametrize("q", [0.0, 0.3, 0.7, 1.0])
def test_a_unit_that_follows_a_class_scores_the_analytic_value(n, q):
    """With probability q the unit is on exactly in class 0 of 8, else on by a coin of the same rate."""
    g = generator(n)
    classes = torch.randint(0, 8, (n,), generator=g)
    copies = 32
    follows = torch.rand(n, copies, generator=g) < q
    units = torch.where(follows, (classes == 0)[:, None], torch.rand(n, copies, generator=g) < 1 / 8)
    counts, totals = joint_counts(units, classes, 8)
    on = torch.full((8,), (1 - q) / 8).double()
    on[0] += q
    joint = torch.stack([on / 8, (1 - on) / 8])
    information = float(torch.special.xlogy(joint, joint / joint.sum(1, keepdim=True) * 8).sum())
    found = si(counts, totals).units
    assert (found - information / math.log(8)).abs().mean() < 0.02 and abs(
        float(found.mean()) - information / math.log(8)
    ) < (0.003 if n > 1000 else 0.01)
    if q == 1:
        unit_entropy = -(1 / 8 * math.log(1 / 8) + 7 / 8 * math.log(7 / 8))
        assert float(found.mean()) == pytest.approx(unit_entropy / math.log(8), abs=0.02)


@pytest.mark.parametrize("n", [1000, 10_000, 100_000])
@pytest.mark.parametrize("c", [3, 40])
def test_random_units_are_within_two_standard_errors_of_0(n, c):
    g = generator(n + c)
    classes = torch.randint(0, c, (n,), generator=g)
    units = torch.rand(n, 64, generator=g) < torch.rand(64, generator=g)
    counts, totals = joint_counts(units, classes, c)
    found = si(counts, totals, joint_choices(units))
    # A unit's information is skewed (χ²), hence a wider extreme than a Gaussian's.
    assert abs(float(found.units_z.mean())) * 8 < 2 and float(found.units_z.abs().max()) < 7
    assert float(found.units_z.std()) == pytest.approx(1, abs=0.35)
    assert abs(found.z) < 2.5


def test_a_layer_whose_pathways_follow_the_classes_scores_1_or_its_ceiling():
    g = generator()
    n = 5000
    pos = torch.randint(0, 12, (n,), generator=g)
    groups = torch.arange(n) % 16
    one_each = torch.nn.functional.one_hot(pos, 16).bool()
    found = si(*joint_counts(one_each, pos, 12, groups, 16), joint_choices(one_each))
    assert found.value == pytest.approx(1, abs=1e-9) and found.ceiling == pytest.approx(1) and found.z > 10
    assert found.low == pytest.approx(1, abs=1e-6)
    sets = torch.rand(12, 16, generator=g).topk(4).indices
    decided = torch.zeros(12, 16, dtype=torch.bool).scatter_(1, sets, True)[pos]
    found = si(*joint_counts(decided, pos, 12, groups, 16), joint_choices(decided))
    assert found.value == pytest.approx(found.ceiling, rel=0.005) and found.ceiling < 0.7 and found.z > 10


def test_correlated_pathways_have_a_wider_null():
    """Pathways that always go together count once: the layer's z must stay standard normal over random labels."""
    g = generator()
    n = 3000
    pair = torch.rand(n, 4, generator=g) < 0.3
    units = pair.repeat(1, 4)  # 16 pathways, 4 distinct
    z, ignorant = [], []
    for _ in range(80):
        counts, totals = joint_counts(units, torch.randint(0, 10, (n,), generator=g), 10)
        z.append(si(counts, totals, joint_choices(units)).z)
        ignorant.append(si(counts, totals).z)
    assert float(torch.tensor(z).std()) == pytest.approx(1, abs=0.2)
    assert float(torch.tensor(ignorant).std()) > 1.5


@pytest.mark.parametrize("n", [1000, 10_000])
def test_given_the_token_only_what_lies_beyond_it_counts(n):
    g = generator(n)
    p = 1 / torch.arange(1, 501).double()
    token = torch.multinomial(p, n, replacement=True, generator=g)
    pos_of_token = torch.randint(0, 5, (500,), generator=g)
    strata = token + 500 * torch.randint(0, 4, (n,), generator=g)

    def given_token(units, classes):
        counts, totals = joint_counts(units, classes, 5, strata, 2000)
        return si(counts.unflatten(0, (4, 500)), totals.unflatten(0, (4, 500)), joint_choices(units))

    noisy = torch.where(torch.rand(n, generator=g) < 0.5, pos_of_token[token], torch.randint(0, 5, (n,), generator=g))
    by_token = torch.nn.functional.one_hot(pos_of_token[token], 5).bool()
    assert si(*joint_counts(by_token, noisy, 5)).z > 10
    blind = given_token(by_token, noisy)  # the unit is constant given the token
    assert abs(blind.value) < 1e-9
    random = given_token(torch.rand(n, 8, generator=g) < 0.25, noisy)
    assert abs(random.z) < 3 and random.null_mean > 0.05
    sees = given_token(torch.nn.functional.one_hot(noisy, 5).bool(), noisy)
    assert sees.value == pytest.approx(1, abs=1e-9) and sees.z > 10


def test_a_single_class_is_nan():
    found = si(torch.tensor([[[4, 0], [1, 0]]]), torch.tensor([[9, 0]]))
    assert math.isnan(found.value) and found.units.isnan().all() and found.n == 9


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"must be \[g, \(s,\) u, c\]"):
        si(torch.ones(2, 3, 4), torch.ones(2, 3))
