"""Greedy allocation: exhaustive search where costs are convex, targets met, extremes."""

import itertools

import pytest

from slms.models.dynamic import LEVELS, allocate


def mean(densities, sizes):
    return sum(densities[i] * sizes[i] for i in sizes) / sum(sizes.values())


def test_it_is_the_best_of_all_where_costs_are_convex():
    levels = (0.25, 0.5, 0.75, 1.0)
    costs = {i: [a * (1 - rho) ** 2 for rho in levels] for i, a in enumerate((1.0, 3.0, 0.2))}
    sizes = {0: 10, 1: 10, 2: 10}
    for target in (0.25, 0.5, 0.75, 1.0):
        found = allocate(costs, sizes, target, levels)
        assert mean(found, sizes) == pytest.approx(target)
        options = [
            o for o in itertools.product(range(4), repeat=3) if abs(sum(levels[i] for i in o) / 3 - target) < 1e-9
        ]
        best = min(sum(costs[i][o[i]] for i in range(3)) for o in options)
        assert sum(costs[i][levels.index(found[i])] for i in range(3)) == pytest.approx(best)


def test_every_target_is_met_and_cheap_layers_give_more():
    costs = {0: [10.0 * (1 - rho) for rho in LEVELS], 1: [1.0 * (1 - rho) for rho in LEVELS]}
    sizes = {0: 30, 1: 10}
    for target in (0.02, 0.05, 0.33, 0.5, 0.87, 1.0):
        found = allocate(costs, sizes, target)
        assert mean(found, sizes) == pytest.approx(target)
        assert found[1] <= found[0] and all(0 < rho <= 1 for rho in found.values())
    assert allocate(costs, sizes, 1.0) == {0: 1.0, 1: 1.0}


@pytest.mark.parametrize("target", [0.0, 1.01])
def test_refuses(target):
    with pytest.raises(ValueError, match="`target` is"):
        allocate({0: [0.0] * len(LEVELS)}, {0: 1}, target)
