"""OLMoE's measures, against loops over tokens that follow its definitions."""

import pytest
import torch

from slms.metrics.functional.olmoe import (
    FEWEST,
    coactivation_share,
    domain_specialization,
    use_share,
    vocabulary_specialization,
)

N, P, IDS, G = 600, 5, 9, 4


@pytest.fixture(scope="module")
def tokens():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(IDS, (N,), generator=generator)
    ids[ids == 8] = torch.where(torch.arange(int((ids == 8).sum())) < FEWEST - 1, 8, 0)  # one id is too rare
    scores = torch.rand(N, P, generator=generator) + torch.eye(P)[ids % P] * 0.5
    chosen = torch.zeros(N, P, dtype=torch.bool).scatter_(1, scores.topk(2).indices, True)
    return ids, chosen, torch.randint(G, (N,), generator=generator)


def tables(ids, chosen, groups, c):
    counts, totals = torch.zeros(G, P, c), torch.zeros(G, c)
    for i, x in enumerate(ids.tolist()):
        totals[groups[i], x] += 1
        for p in range(P):
            counts[groups[i], p, x] += int(chosen[i, p])
    return counts, totals


def share(ids, chosen, p, x) -> float:
    """N_{E,x} / N_x."""
    mine = [i for i in range(len(ids)) if ids[i] == x]
    return sum(bool(chosen[i, p]) for i in mine) / len(mine)


def slow_vocabulary(ids, chosen, kept) -> float:
    return sum(max(share(ids, chosen, p, x) for p in range(P)) for x in kept) / len(kept)


def slow_domains(ids, chosen) -> float:
    loads = chosen.double().mean(0).tolist()
    found = [abs(share(ids, chosen, p, x) - loads[p]) for p in range(P) for x in sorted(set(ids.tolist()))]
    return sum(found) / len(found)


def slow_coactivation(chosen) -> float:
    largest = []
    for i in range(P):
        mine = [row for row in chosen.tolist() if row[i]]
        largest.append(max(sum(row[j] for row in mine) / len(mine) for j in range(P) if j != i))
    return sum(largest) / P


def test_each_is_its_definition(tokens):
    ids, chosen, groups = tokens
    counts, totals = tables(ids, chosen, groups, IDS)
    assert float(use_share(counts.sum(0), totals.sum(0))[3, 2]) == pytest.approx(share(ids, chosen, 3, 2))
    kept = range(8)
    vocabulary = vocabulary_specialization(counts, totals)
    assert vocabulary.value == pytest.approx(slow_vocabulary(ids, chosen, kept))
    domains = domain_specialization(counts, totals)
    assert domains.value == pytest.approx(slow_domains(ids, chosen))
    together = torch.stack([chosen[groups == g].double().T @ chosen[groups == g].double() for g in range(G)])
    pairs = coactivation_share(together)
    assert pairs.value == pytest.approx(slow_coactivation(chosen))
    rest = groups != 2
    for score, slow in (
        (vocabulary, slow_vocabulary(ids[rest], chosen[rest], kept)),
        (domains, slow_domains(ids[rest], chosen[rest])),
        (pairs, slow_coactivation(chosen[rest])),
    ):
        assert score.left_out is not None and float(score.left_out[2]) == pytest.approx(slow)
        assert score.low < score.value < score.high


def test_the_ends_of_the_scales():
    ids = torch.arange(200) % 4
    groups = torch.arange(200) // 50
    tied = torch.nn.functional.one_hot(ids, P).bool()  # each id has a pathway of its own, and the fifth has none
    counts, totals = tables(ids, tied, groups, 4)
    assert vocabulary_specialization(counts, totals).value == 1
    assert coactivation_share(torch.stack([torch.eye(P)] * G)).value == 0
    assert coactivation_share(torch.ones(G, P, P)).value == 1
    everything = torch.ones(200, P, dtype=torch.bool)
    assert domain_specialization(*tables(ids, everything, groups, 4)).value == 0


def test_no_tokens_say_nothing():
    for found in (
        vocabulary_specialization(torch.zeros(G, P, 3), torch.full((G, 3), 2)),
        domain_specialization(torch.zeros(G, P, 0), torch.zeros(G, 0)),
        coactivation_share(torch.zeros(G, P, P)),
    ):
        assert found.value != found.value and found.n == 0
