"""Purity against planted truth: 0 for random routers, 1 for a router that follows the class."""

import math

import pytest
import torch

from slms.metrics.functional import joint_choices, joint_counts, purity, purity_legacy


def zipf(v):
    p = 1 / torch.arange(1, v + 1).double()
    return p / p.sum()


def random_router(n, p, k, generator):
    picks = torch.rand(n, p, generator=generator).topk(k, dim=1).indices
    return torch.zeros(n, p, dtype=torch.bool).scatter_(1, picks, True)


def tokens(n, v, generator):
    return torch.multinomial(zipf(v), n, replacement=True, generator=generator)


def score(chosen, classes, n_classes, generator):
    groups = torch.randint(0, 8, classes.shape, generator=generator)
    counts, totals = joint_counts(chosen, classes, n_classes, groups, 8)
    return purity(counts, totals, joint_choices(chosen)), counts


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n, v, runs", [(1000, 2048, 12), (10_000, 2048, 6), (10_000, 50_257, 3), (100_000, 2048, 2)])
def test_a_random_router_is_within_two_standard_errors_of_0(n, v, runs):
    g = generator(n + v)
    scores = [score(random_router(n, 16, 4, g), tokens(n, v, g), v, g)[0] for _ in range(runs)]
    z = torch.tensor([s.z for s in scores])
    assert abs(float(z.mean())) * runs**0.5 < 2 and float(z.abs().max()) < 3.5, z
    units = torch.cat([s.units_z for s in scores])
    assert float(units.mean()) * len(units) ** 0.5 < 3 and float(units.std()) == pytest.approx(1, abs=0.3)
    assert sum(s.low <= 0 <= s.high for s in scores) >= runs - 1
    assert all(abs(s.value) < 3 * s.null_sd < 0.02 for s in scores)


def test_the_legacy_purity_of_a_random_router_grows_with_tokens():
    g = generator()
    legacy = [
        float(purity_legacy(score(random_router(n, 16, 4, g), tokens(n, 2048, g), 2048, g)[1]).nanmean())
        for n in (300, 3000, 100_000)
    ]
    assert legacy[0] < 0.1 < legacy[1] < 0.2 < legacy[2]


@pytest.mark.parametrize("n", [1000, 30_000])
def test_a_pathway_for_each_part_of_speech_scores_1(n):
    g = generator()
    pos = tokens(n, 12, g)
    for pathway in (pos, pos + 12 * torch.randint(0, 2, (n,), generator=g)):  # one each; or two that share a class
        chosen = torch.nn.functional.one_hot(pathway, 25).bool()  # pathway 24 is never chosen
        found, _ = score(chosen, pos, 12, g)
        assert found.value == pytest.approx(1, abs=1e-9) and found.z > 10
        assert found.units[:12].tolist() == pytest.approx([1] * 12, abs=1e-9) and found.units[24].isnan()
        assert found.ceiling == pytest.approx(1)


@pytest.mark.parametrize("p, k", [(4, 1), (16, 4), (8, 2)])
def test_a_choice_that_the_part_of_speech_decides_reaches_the_ceiling(p, k):
    g = generator()
    n, pos = 20_000, tokens(20_000, 12, generator(1))
    sets = random_router(12, p, k, g)
    found, counts = score(sets[pos], pos, 12, g)
    assert found.value == pytest.approx(found.ceiling, rel=0.003) and found.ceiling < 1 and found.z > 10
    load = counts.sum((0, 2)).double()
    h = -(torch.bincount(pos).double() / n * (torch.bincount(pos).double() / n).log()).sum()
    used = load > 0
    of_choice = -(load / load.sum() * (load / n).log())[used].sum() / h  # I(choice; class) / H(class)
    assert found.value == pytest.approx(float(of_choice), rel=0.003)


@pytest.mark.parametrize("q", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("n", [1000, 10_000, 100_000])
def test_a_partial_router_scores_the_truth_at_any_number_of_tokens(q, n):
    g = generator(3)
    v, p, k = 2048, 16, 4
    sets = random_router(v, p, k, g)
    on = q * sets.double() + (1 - q) * k / p
    joint = zipf(v)[:, None] * on
    load = joint.sum(0)
    kl = torch.special.xlogy(joint / load, joint / load / zipf(v)[:, None]).sum(0)
    truth = float((load / load.sum() * kl).sum() / -(zipf(v) * zipf(v).log()).sum())
    found = []
    for _ in range(max(1, 8000 // n)):
        t = tokens(n, v, g)
        follows = torch.rand(n, 1, generator=g) < q
        found.append(score(torch.where(follows, sets[t], random_router(n, p, k, g)), t, v, g)[0])
    assert sum(f.value for f in found) / len(found) == pytest.approx(truth, rel=0.08, abs=0.001)
    assert all(f.low < f.value < f.high for f in found)


def test_by_hand():
    # Two classes of 40 and 60 tokens; pathway 0 takes 30 and 10, pathway 1 takes 10 and 50.
    counts = torch.tensor([[[30, 10], [10, 50]]])
    totals = torch.tensor([[40, 60]])
    expected, weight = [], []
    for row in counts[0].tolist():
        m = sum(row)
        cross = -sum(k / m * math.log(t / 100) for k, t in zip(row, [40, 60], strict=True))
        kl = cross + sum(k / m * math.log(k / m) for k in row) - 1 / (2 * m)
        chance = 0.0
        for k in range(max(0, m - 60), min(40, m) + 1):
            probability = math.comb(40, k) * math.comb(60, m - k) / math.comb(100, m)
            drawn = [k, m - k]
            h = -sum(x / m * math.log(x / m) for x in drawn if x) + (sum(x > 0 for x in drawn) - 1) / (2 * m)
            chance += probability * (-sum(x / m * math.log(t / 100) for x, t in zip(drawn, [40, 60], strict=True)) - h)
        bound = min(cross, -math.log(m / 100))
        expected.append((kl - chance) / (bound - chance) * bound / cross)
        weight.append(m * cross)
    found = purity(counts, totals)
    assert found.units.tolist() == pytest.approx(expected, abs=1e-4)
    assert found.value == pytest.approx(
        sum(w * x for w, x in zip(weight, expected, strict=True)) / sum(weight), abs=1e-4
    )
    assert math.isnan(found.low)  # one group: no interval


def test_always_on_and_too_rare_pathways():
    g = generator()
    t = tokens(2000, 50, g)
    chosen = torch.stack([torch.ones(2000).bool(), t < 3, torch.arange(2000) < 9], dim=1)
    found, _ = score(chosen, t, 50, g)
    assert abs(float(found.units[0])) < 1e-6 and float(found.units[1]) > 0.2 and found.units[2].isnan()


@pytest.mark.parametrize("events", [10, 12, 20, 60])
def test_a_rare_pathway_of_one_frequent_token_leaves_the_layer_as_it_is(events):
    g = generator(2)
    t = tokens(8192, 2048, g)
    for token in range(8):
        at = (t == token).nonzero()[:events, 0]
        rare = torch.zeros(len(t), 1, dtype=torch.bool).index_fill_(0, at, True)
        found, _ = score(torch.cat([random_router(len(t), 16, 4, g), rare], 1), t, 2048, g)
        assert abs(found.value) < 0.02 and abs(float(found.units[-1])) < 1.5, (token, found.value)


def test_too_little_is_nan():
    for n, v in ((5, 4), (500, 1)):
        found, _ = score(random_router(n, 4, 1, generator()), torch.zeros(n).long() % v, v, generator())
        assert math.isnan(found.value) and math.isnan(found.z) and found.units.isnan().all() and found.n == n


def test_legacy_is_the_formula_of_the_prototype():
    counts = torch.tensor([[5, 4, 1, 0], [12, 0, 0, 0], [3, 3, 3, 0]])
    entropy = -sum(p * math.log(p) for p in (0.5, 0.4, 0.1))
    found = purity_legacy(counts)
    assert found[:2].tolist() == pytest.approx([1 - entropy / math.log(3), 1.0]) and found[2].isnan()  # 9 events


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        purity(torch.ones(2, 3), torch.ones(2, 3))
