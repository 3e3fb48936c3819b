"""Decides how much each layer, and each matrix of an MLP, may execute for a target: greedily, by what it costs."""

from collections.abc import Callable, Mapping, Sequence

LEVELS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Densities at which a layer's cost is measured, ascending."""


def allocate(
    costs: Mapping[str, Sequence[float]], sizes: Mapping[str, int], target: float, levels: Sequence[float] = LEVELS
) -> dict[str, float]:
    """Return densities by place whose mean, weighted by size, is `target`; greedy steps lead down from dense.

    costs: for each place, the cost (in nats, or error) of executing it at each level with everything else dense.
    sizes: the number of neurons of each place. Each step lowers the place that adds the least cost per saved neuron
    (our own budget; TEAL's is `cheapest_step`); the last step is shortened to meet the target. Below the lowest level
    all places shrink alike. Raises ValueError unless the target is above 0 and at most 1.
    """
    if not 0 < target <= 1:
        raise ValueError(f"`target` is {target}; it must be above 0 and at most 1.")
    total = sum(sizes.values())
    at = {place: len(levels) - 1 for place in costs}
    densities = {place: levels[-1] for place in costs}
    while True:
        excess = sum(densities[place] * sizes[place] for place in costs) - target * total
        open_places = [place for place in costs if at[place] > 0]
        if excess <= 1e-9 * total or not open_places:
            break

        def price(place: str) -> float:
            i = at[place]
            return (costs[place][i - 1] - costs[place][i]) / ((levels[i] - levels[i - 1]) * sizes[place])

        place = min(open_places, key=price)
        lower = levels[at[place] - 1]
        densities[place] = max(lower, densities[place] - excess / sizes[place])
        at[place] -= 1
    if excess > 1e-9 * total:
        shrink = target / levels[0]
        densities = {place: density * shrink for place, density in densities.items()}
    return densities


def cheapest_step(
    error: Callable[[dict[str, float]], float], sparsities: dict[str, float], step: float = 0.05
) -> dict[str, float]:
    """Raise by `step` the sparsity of the matrix for which the error is least (TEAL, arXiv:2408.14690, algorithm 1).

    error: what the sparsities of an MLP's matrices, by name, cost. Matrices that are left out whole stay as they are;
    one at least must not be.
    """
    raised = {name: min(1.0, round(sparsity + step, 6)) for name, sparsity in sparsities.items() if sparsity < 1}
    return min((sparsities | {name: sparsity} for name, sparsity in raised.items()), key=error)
