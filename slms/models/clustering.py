"""Clusters items into groups of given sizes: optimal assignment, k-means, spectral embedding, swaps.

Shapes: f items (neurons), d features, p groups.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

_RESTARTS = 4
_ITERATIONS = 50
_SWEEPS = 20
MOST_GROUPS = 192
"""Above, groups are found within communities, because a balanced assignment takes time in the square of the groups."""


Find = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps the indices of items [f] and the sizes of groups [p] to labels [f]."""


def nested(find: Find, items: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Find labels [f] of items; of more than `MOST_GROUPS` groups, first communities of about equally many groups."""
    if len(sizes) <= MOST_GROUPS:
        return find(items, sizes)
    parts = np.array_split(np.arange(len(sizes)), -(-len(sizes) // MOST_GROUPS))
    community = nested(find, items, np.array([sizes[part].sum() for part in parts]))
    labels = np.empty_like(community)
    for i, part in enumerate(parts):
        inside = np.flatnonzero(community == i)
        labels[inside] = part[find(items[inside], sizes[part])]
    return labels


class Assignment(NamedTuple):
    """An assignment of items to groups."""

    labels: np.ndarray
    """The group of each item, [f]; group p has exactly sizes[p] items."""
    prices: np.ndarray
    """The dual variables of the sizes, [p]; they warm-start a similar problem."""


def balanced_assignment(gain: np.ndarray, sizes: np.ndarray, prices: np.ndarray | None = None) -> Assignment:
    """Find the labels that maximise Σ_i gain[i, label_i] with exactly sizes[p] items of label p; gain is [f, p].

    This is the transportation problem with p sinks. Coordinate ascent on the dual finds prices at which nearly the
    right number of items prefers each sink. The remaining surplus moves along cheapest augmenting paths in the graph
    of the p sinks (Ford and Fulkerson 1962), which keeps the assignment optimal. ``prices`` warm-starts the ascent.
    Raises ValueError if a gain is not finite, as no path would then end.
    """
    if not np.isfinite(gain).all():
        raise ValueError("the gains of an assignment hold NaN or infinity; they must be finite")
    n_items, n_sinks = gain.shape
    assert sizes.sum() == n_items, (sizes.sum(), n_items)
    prices = _prices(gain, sizes, np.zeros(n_sinks) if prices is None else prices.copy())
    gain = gain - prices
    labels = gain.argmax(1)
    counts = np.bincount(labels, minlength=n_sinks)
    tie = 1e-12 * np.abs(gain).max(initial=0.0)
    while (counts != sizes).any():
        loss, cost, _ = _moves(gain, labels)
        path = _cheapest_path(cost, np.flatnonzero(counts > sizes), np.flatnonzero(counts < sizes), tie)
        # Equal items, such as neurons that never fire, move together; otherwise each would need its own path.
        movers = [
            np.flatnonzero((labels == source) & (loss[:, sink] <= cost[source, sink] + tie))
            for source, sink in pairwise(path)
        ]
        first, last = path[0], path[-1]
        several = min(counts[first] - sizes[first], sizes[last] - counts[last], *map(len, movers))
        for items, sink in zip(movers, path[1:], strict=True):
            labels[items[:several]] = sink
        counts[first] -= several
        counts[last] += several
    return Assignment(labels, prices)


def _prices(gain: np.ndarray, sizes: np.ndarray, prices: np.ndarray) -> np.ndarray:
    if len(sizes) == 1:
        return prices
    rows = np.ascontiguousarray(gain.T)  # reductions over sinks are many times as fast along the first axis
    net = rows - prices[:, None]
    best, best_imbalance = prices.copy(), np.inf
    for _ in range(_SWEEPS):
        imbalance = np.abs(np.bincount(net.argmax(0), minlength=len(sizes)) - sizes).sum()
        if imbalance >= best_imbalance:
            break
        best, best_imbalance = prices.copy(), imbalance
        for p, size in enumerate(sizes):
            net[p] = -np.inf
            margin = rows[p] - net.max(0)
            at = len(margin) - size
            ordered = np.partition(margin, (at - 1, at))
            prices[p] = (ordered[at - 1] + ordered[at]) / 2  # exactly `size` items prefer p
            net[p] = rows[p] - prices[p]
    return best


def _moves(gain: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the loss [f, p] of moving an item to a group, the least loss between groups, and its item, both [p, p]."""
    n_sinks = gain.shape[1]
    loss = gain[np.arange(len(gain)), labels][:, None] - gain
    cost, mover = np.full((n_sinks, n_sinks), np.inf), np.zeros((n_sinks, n_sinks), dtype=np.int64)
    for source in range(n_sinks):
        items = np.flatnonzero(labels == source)
        if len(items):
            first = loss[items].argmin(0)
            cost[source], mover[source] = loss[items[first], np.arange(n_sinks)], items[first]
    np.fill_diagonal(cost, np.inf)
    return loss, cost, mover


def _cheapest_path(cost: np.ndarray, sources: np.ndarray, sinks: np.ndarray, tie: float) -> list[int]:
    """Find the groups on the cheapest path from any source to any sink by Bellman–Ford, as costs may be negative.

    Costs that differ by less than `tie` are equal. Rounding and earlier ties can make a circle seem to pay; then what
    counts as equal grows until none does.
    """
    while True:
        distance, parent = np.full(len(cost), np.inf), np.full(len(cost), -1)
        distance[sources] = 0.0
        for _ in range(len(cost) - 1):
            through = distance[:, None] + cost
            best = through.argmin(0)
            found = through[best, np.arange(len(cost))]
            shorter = found < distance - tie
            if not shorter.any():
                break
            distance[shorter], parent[shorter] = found[shorter], best[shorter]
        path = [int(sinks[distance[sinks].argmin()])]
        while parent[path[0]] >= 0 and len(path) <= len(cost):
            path.insert(0, int(parent[path[0]]))
        if len(path) <= len(cost):
            return path
        tie = max(4 * tie, np.finfo(float).eps * np.abs(cost[np.isfinite(cost)]).max())


def balanced_kmeans(features: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Find labels [f] that locally minimise Σ_i ‖x_i − mean of its group‖² for x = features [f, d] and given sizes.

    This is Lloyd's iteration with an optimal balanced assignment, from k-means++ seeds; the best of 4 restarts counts.
    """
    best, best_value = np.zeros(0), -np.inf
    for _ in range(_RESTARTS):
        centres = features[_spread(features, len(sizes), rng)]
        labels, prices = balanced_assignment(features @ centres.T - (centres**2).sum(1) / 2, sizes)
        for _ in range(_ITERATIONS):
            centres = _onehot(labels, len(sizes)).T @ features / sizes[:, None]
            previous = labels
            labels, prices = balanced_assignment(features @ centres.T - (centres**2).sum(1) / 2, sizes, prices)
            if (labels == previous).all():
                break
        value = (sizes * ((_onehot(labels, len(sizes)).T @ features / sizes[:, None]) ** 2).sum(1)).sum()
        if value > best_value:
            best, best_value = labels, value
    return best


def _onehot(labels: np.ndarray, n_groups: int) -> np.ndarray:
    return np.eye(n_groups)[labels]


def _spread(features: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n rows by k-means++ (Arthur and Vassilvitskii 2007): each by its squared distance to the earlier ones."""
    chosen = [int(rng.integers(len(features)))]
    distance = ((features - features[chosen[0]]) ** 2).sum(1)
    while len(chosen) < n:
        weight = distance + 1e-12 * (1.0 + distance.max())  # too few distinct rows may make duplicates necessary
        weight[chosen] = 0.0
        chosen.append(int(rng.choice(len(features), p=weight / weight.sum())))
        distance = np.minimum(distance, ((features - features[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)


def spectral_embedding(graph: np.ndarray, n: int) -> np.ndarray:
    """Embed a non-negative symmetric graph [f, f] by its normalised cut (Ng, Jordan and Weiss 2001), [f, n].

    Columns are the n leading eigenvectors of D^{-1/2} A D^{-1/2}; rows have length 1, or 0 for items without edges.
    """
    degree = graph.sum(1)
    if not degree.any():
        return np.zeros((len(graph), n))
    scale = np.divide(1.0, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    normalised = graph * scale[:, None] * scale[None]
    if 8 * n < len(graph):
        vectors = eigsh(normalised, k=n, which="LA", v0=np.ones(len(graph)))[1]
    else:
        vectors = eigh(normalised, subset_by_index=[len(graph) - n, len(graph) - 1])[1]
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > 1e-9, vectors / np.maximum(length, 1e-9), 0.0)


def swap_refinement(affinity: np.ndarray, labels: np.ndarray, n_groups: int) -> np.ndarray:
    """Swap items between groups while that raises the sum of affinity [f, f] within groups (Kernighan–Lin 1970).

    Each swap takes the two groups with the largest gain and exchanges the best mover of one for the best mover of the
    other. Sizes do not change.
    """
    affinity = (affinity + affinity.T) / 2  # if rounding had made it asymmetric, swaps could go round in circles
    np.fill_diagonal(affinity, 0.0)
    labels = labels.copy()
    to_group = affinity @ _onehot(labels, n_groups)
    smallest = 1e-9 * max(np.abs(to_group).max(), 1e-300)
    while True:
        _, cost, mover = _moves(to_group, labels)
        gain = -cost - cost.T - 2.0 * affinity[mover, mover.T]
        a, b = np.unravel_index(gain.argmax(), gain.shape)
        if not gain[a, b] > smallest:
            return labels
        i, j = mover[a, b], mover[b, a]
        change = affinity[j] - affinity[i]
        to_group[:, a] += change
        to_group[:, b] -= change
        labels[i], labels[j] = b, a
