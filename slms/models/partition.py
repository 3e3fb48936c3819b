"""Partition of an MLP's neurons into pathways of equal size.

Shapes: n calibration tokens, f neurons, d features or model, p pathways.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Partition(NamedTuple):
    """Neurons in pathway order."""

    permutation: Tensor
    """[f] int64: the dense model's index of each row; pathway p is permutation[offsets[p] : offsets[p + 1]]."""
    offsets: tuple[int, ...]
    """P + 1 row offsets, from 0 to f."""


def pathway_offsets(d_ff: int, n_pathways: int) -> tuple[int, ...]:
    """Row offsets of pathways whose sizes differ by at most 1, the larger ones first.

    >>> pathway_offsets(10, 4)
    (0, 3, 6, 8, 10)
    """
    if n_pathways > d_ff:
        raise ValueError(f"`routing.n_pathways` is {n_pathways}; it must be at most the MLP's d_ff ({d_ff}).")
    small, larger = divmod(d_ff, n_pathways)
    return tuple(p * small + min(p, larger) for p in range(n_pathways + 1))


def partition(
    kind: str,
    W_in: Tensor,
    acts: Tensor | None,
    n_pathways: int,
    seed: int = 0,
    *,
    W_out: Tensor | None = None,
    W_gate: Tensor | None = None,
    n_shared: int = 0,
) -> Partition:
    """Group the neurons of W_in [f, d] into n_pathways.

    acts [n, f] are the inputs of the down-projection on calibration tokens; W_out [f, d] weighs them; both are needed
    by ``coactivation`` only.
    """
    d_ff = W_in.shape[0]
    offsets = pathway_offsets(d_ff, n_pathways)
    sizes = np.diff(offsets)
    rng = np.random.default_rng(seed)
    if kind == "contiguous":
        return Partition(torch.arange(d_ff), offsets)
    if kind == "random":
        return Partition(torch.from_numpy(rng.permutation(d_ff)), offsets)
    if kind == "kmeans":
        rows = W_in if W_gate is None else torch.cat([W_gate, W_in], 1)
        rows = rows.detach().float().cpu().numpy()
        features = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    elif kind == "coactivation":
        if acts is None or W_out is None:
            raise ValueError("`routing.partition` is coactivation; it needs calibration tokens.")
        energy = (acts.float().abs() * W_out.detach().float().norm(dim=1)).cpu().numpy()
        centred = energy - energy.mean(0)
        features = (centred / np.maximum(centred.std(0), 1e-12)).T
    else:
        raise ValueError(f"`routing.partition` is {kind!r}; it must be contiguous, random, kmeans or coactivation.")
    labels = balanced_kmeans(features, sizes, rng)
    return Partition(torch.from_numpy(np.argsort(labels, kind="stable")), offsets)


def balanced_kmeans(features: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, restarts: int = 4) -> np.ndarray:
    """Labels [f] minimising the squared distance of features [f, d] to their cluster's mean, cluster p of sizes[p]."""
    gram = features @ features.T
    best, best_value = None, -np.inf
    for _ in range(restarts):
        labels = np.repeat(np.arange(len(sizes)), sizes)
        labels = labels[np.argsort(np.argsort(rng.random(len(labels))))]
        seeds = _spread_seeds(gram, len(sizes), rng)
        labels = balanced_assignment(gram[:, seeds], sizes)
        for _ in range(50):
            onehot = np.eye(len(sizes))[labels]
            means = (gram @ onehot) / sizes
            within = np.einsum("ip,ip->p", onehot, means) / sizes
            new = balanced_assignment(means - within / 2, sizes)
            if (new == labels).all():
                break
            labels = new
        value = (means * np.eye(len(sizes))[labels]).sum()
        if value > best_value:
            best, best_value = labels, value
    return best


def _spread_seeds(gram: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ seeding from inner products."""
    norms = np.diag(gram)
    chosen = [int(rng.integers(len(gram)))]
    distance = norms + norms[chosen[0]] - 2 * gram[:, chosen[0]]
    for _ in range(n - 1):
        weight = np.maximum(distance, 0) + 1e-12
        weight[chosen] = 0
        chosen.append(int(rng.choice(len(gram), p=weight / weight.sum())))
        distance = np.minimum(distance, norms + norms[chosen[-1]] - 2 * gram[:, chosen[-1]])
    return np.array(chosen)


def balanced_assignment(gain: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Labels [f] that maximise Σ_i gain[i, label_i] with exactly sizes[p] items of label p; optimal.

    A transportation problem with p sinks: prices are found by coordinate ascent on the dual, then what is left of the
    imbalance moves along shortest augmenting paths in the graph of the p sinks, which keeps the solution optimal.
    """
    n_items, n_sinks = gain.shape
    assert sizes.sum() == n_items, (sizes.sum(), n_items)
    gain = gain - _prices(gain, sizes)
    labels = gain.argmax(1)
    counts = np.bincount(labels, minlength=n_sinks)
    while (counts > sizes).any():
        own = gain[np.arange(n_items), labels]
        cost, mover = np.full((n_sinks, n_sinks), np.inf), np.zeros((n_sinks, n_sinks), dtype=int)
        for source in range(n_sinks):
            items = np.flatnonzero(labels == source)
            if len(items):
                loss = own[items, None] - gain[items]
                first = loss.argmin(0)
                cost[source], mover[source] = loss[first, np.arange(n_sinks)], items[first]
        np.fill_diagonal(cost, np.inf)
        path = _cheapest_path(cost, np.flatnonzero(counts > sizes), np.flatnonzero(counts < sizes))
        for source, sink in pairwise(path):
            labels[mover[source, sink]] = sink
        counts[path[0]] -= 1
        counts[path[-1]] += 1
    return labels


def _prices(gain: np.ndarray, sizes: np.ndarray, sweeps: int = 20) -> np.ndarray:
    prices = np.zeros(gain.shape[1])
    for _ in range(sweeps):
        for p, size in enumerate(sizes):
            net = gain - prices
            net[:, p] = -np.inf
            margin = np.sort(gain[:, p] - net.max(1))[::-1] if gain.shape[1] > 1 else np.zeros(len(gain))
            low = margin[size] if size < len(margin) else margin[-1] - 1.0
            prices[p] = (margin[size - 1] + low) / 2
        counts = np.bincount((gain - prices).argmax(1), minlength=len(sizes))
        if (counts == sizes).all():
            break
    return prices


def _cheapest_path(cost: np.ndarray, sources: np.ndarray, sinks: np.ndarray) -> list[int]:
    """Bellman-Ford: nodes of the cheapest path from any source to any sink (edges may have negative cost)."""
    n = len(cost)
    distance, parent = np.full(n, np.inf), np.full(n, -1)
    distance[sources] = 0.0
    for _ in range(n - 1):
        through = distance[:, None] + cost
        best = through.argmin(0)
        shorter = through[best, np.arange(n)] < distance - 1e-12
        if not shorter.any():
            break
        distance[shorter], parent[shorter] = through[best, np.arange(n)][shorter], best[shorter]
    path = [int(sinks[distance[sinks].argmin()])]
    while parent[path[0]] >= 0:
        path.insert(0, int(parent[path[0]]))
    return path
