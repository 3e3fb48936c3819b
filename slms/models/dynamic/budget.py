"""How much each layer may execute: densities by layer, allocated greedily to a target for the whole model.

Shapes: l layers, s levels.
"""

from collections.abc import Mapping, Sequence

LEVELS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Densities at which a layer's cost is measured, ascending."""


def allocate(
    costs: Mapping[int, Sequence[float]], sizes: Mapping[int, int], target: float, levels: Sequence[float] = LEVELS
) -> dict[int, float]:
    """Densities by layer whose mean, weighted by size, is `target`: from dense, the cheapest step down again and again.

    costs: by layer, what executing it at each level costs (nats, or error), everything else dense. sizes: neurons of
    each layer. The step that the greedy takes next saves neurons at the least added cost per neuron (TEAL,
    arXiv:2408.14690, algorithm 1, one level at a time); the last one is shortened to meet the target. Below the lowest
    level all layers shrink alike. Raises ValueError where the target is not above 0 and at most 1.
    """
    if not 0 < target <= 1:
        raise ValueError(f"`target` is {target}; it must be above 0 and at most 1.")
    total = sum(sizes.values())
    at = {layer: len(levels) - 1 for layer in costs}
    densities = {layer: levels[-1] for layer in costs}
    while True:
        excess = sum(densities[layer] * sizes[layer] for layer in costs) - target * total
        open_layers = [layer for layer in costs if at[layer] > 0]
        if excess <= 1e-9 * total or not open_layers:
            break

        def price(layer: int) -> float:
            i = at[layer]
            return (costs[layer][i - 1] - costs[layer][i]) / ((levels[i] - levels[i - 1]) * sizes[layer])

        layer = min(open_layers, key=price)
        lower = levels[at[layer] - 1]
        densities[layer] = max(lower, densities[layer] - excess / sizes[layer])
        at[layer] -= 1
    if excess > 1e-9 * total:
        shrink = target / levels[0]
        densities = {layer: density * shrink for layer, density in densities.items()}
    return densities
