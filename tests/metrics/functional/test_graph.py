"""The co-activation graph, partition quality and agreement equal loops over their definitions, without networkx."""

import pytest
import torch

from slms.metrics.functional import adjusted_rand_index, coactivation, partition_modularity, partition_quality
from slms.metrics.functional.graph import nearest_neighbours, shuffled_tokens


def blocks(n, f, c, correlation, seed=0):
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(f) % c
    shared = torch.randn(n, c, generator=g)[:, label]
    return correlation**0.5 * shared + (1 - correlation) ** 0.5 * torch.randn(n, f, generator=g), label


def test_edges_are_positive_correlations():
    x, _ = blocks(50, 9, 3, 0.5)
    x[:, 4] = 7.3  # a dead neuron
    found = coactivation(x)
    for i in range(9):
        for j in range(9):
            if i == j or 4 in (i, j):
                assert found[i, j] == 0
            else:
                r = float(torch.corrcoef(x[:, [i, j]].T)[0, 1])
                assert float(found[i, j]) == pytest.approx(max(0.0, r), abs=1e-5)


def test_quality_is_that_of_a_loop():
    w = coactivation(blocks(40, 12, 3, 0.3)[0]).double()
    label = torch.tensor([0, 0, 1, 2, 1, 0, 2, 2, 1, 0, 1, 2])
    total, strength = float(w.sum()), w.sum(0).tolist()
    expected = sum(
        float(w[i, j]) / total - strength[i] * strength[j] / total**2
        for i in range(12)
        for j in range(12)
        if label[i] == label[j]
    )
    assert partition_quality(w, label) == pytest.approx(expected)
    assert partition_quality(torch.zeros(4, 4), torch.tensor([0, 0, 1, 1])) == 0


def test_a_given_partition_against_random_ones():
    x, label = blocks(500, 64, 8, 0.1)
    truth = partition_modularity(coactivation(x), label)
    assert truth.z > 20 and truth.q > 0.1
    z = [partition_modularity(coactivation(x), label[torch.randperm(64)], seed=seed).z for seed in range(20)]
    assert sum(abs(value) < 3 for value in z) >= 19
    with pytest.raises(ValueError, match=r"\(3,\)"):
        partition_modularity(coactivation(x), label[:3])


@pytest.mark.parametrize("k", [1, 3, 50])
def test_nearest_neighbours_are_symmetric_and_strongest(k):
    w = coactivation(blocks(60, 10, 2, 0.4)[0])
    pairs, weights = nearest_neighbours(w, k)
    expected = set()
    for i in range(10):
        strongest = sorted((j for j in range(10) if w[i, j] > 0), key=lambda j: -float(w[i, j]))[:k]
        expected |= {(min(i, j), max(i, j)) for j in strongest}
    assert {tuple(pair) for pair in pairs.tolist()} == expected and len(pairs) == len(expected)
    assert weights.tolist() == pytest.approx([float(w[i, j]) for i, j in pairs.tolist()])  # products differ by side


def test_shuffling_keeps_each_neuron_and_breaks_its_ties():
    x, _ = blocks(300, 20, 2, 0.8)
    shuffled = shuffled_tokens(x, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.sort(0).values, x.sort(0).values)
    assert float(coactivation(shuffled).max()) < 0.3 < float(coactivation(x).max())


def test_adjusted_rand_index_is_that_of_pairs():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 4, (40,), generator=g), torch.randint(0, 3, (40,), generator=g)
    pairs = [(i, j) for i in range(40) for j in range(i)]
    together = sum(bool(a[i] == a[j] and b[i] == b[j]) for i, j in pairs)
    of_a, of_b = (sum(bool(x[i] == x[j]) for i, j in pairs) for x in (a, b))
    chance = of_a * of_b / len(pairs)
    assert adjusted_rand_index(a, b) == pytest.approx((together - chance) / ((of_a + of_b) / 2 - chance))
    assert adjusted_rand_index(a, (a + 1) % 4) == pytest.approx(1)
    assert adjusted_rand_index(torch.zeros(5).long(), torch.zeros(5).long()) == 1
