"""Partitions an MLP's neurons into pathways of equal size.

Shapes: n calibration tokens, f neurons, d model, p pathways.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slms.models.clustering import balanced_kmeans, spectral_embedding, swap_refinement


class Partition(NamedTuple):
    """Neurons in pathway order."""

    permutation: Tensor
    """[f] int64: the dense model's index of each row; pathway p is permutation[offsets[p] : offsets[p + 1]]."""
    offsets: tuple[int, ...]
    """P + 1 row offsets, from 0 to f."""


def pathway_offsets(d_ff: int, n_pathways: int) -> tuple[int, ...]:
    """Compute the row offsets of pathways whose sizes differ by at most 1, the larger ones first.

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
    """Group the neurons of W_in [f, d] into n_pathways whose sizes differ by at most 1. The seed decides the result.

    ``contiguous``    slices in the dense model's order.
    ``random``        slices of a seeded permutation.
    ``kmeans``        balanced k-means of the unit-length rows of W_in, or of [W_gate W_in] in a gated MLP
                      (MoEfication, arXiv:2110.01786, §3.2).
    ``coactivation``  communities of the graph of positive correlations of e_i = |a_i|·‖w_out_i‖, neuron i's
                      contribution to a token. They are found by balanced k-means of its normalised-cut embedding, then
                      refined by swaps that raise the uncentred co-activation E[e_i e_j] within pathways.

    acts [n, f] are the inputs of the down-projection on calibration tokens; ``coactivation`` needs them and W_out
    [f, d]. With n_shared > 0, its first pathways take the neurons with the largest mean e (CMoE, arXiv:2502.04416,
    takes those with the highest rate), and the other neurons are grouped. The other kinds do not use activations, so
    their shared pathways are simply the first ones. Raises ValueError if P exceeds d_ff, kind is unknown or
    ``coactivation`` has no activations.
    """
    d_ff = W_in.shape[0]
    offsets = pathway_offsets(d_ff, n_pathways)
    if n_pathways == d_ff and kind == "kmeans":
        kind = "contiguous"  # single neurons need no grouping
    rng = np.random.default_rng(seed)
    if kind == "contiguous":
        order = np.arange(d_ff)
    elif kind == "random":
        order = rng.permutation(d_ff)
    elif kind == "kmeans":
        rows = _array(W_in if W_gate is None else torch.cat([W_gate, W_in], 1))
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        order = np.argsort(balanced_kmeans(rows, np.diff(offsets), rng), kind="stable")
    elif kind == "coactivation":
        if acts is None or W_out is None:
            raise ValueError("`routing.partition` is coactivation; it needs calibration tokens.")
        order = _coactivation_order(acts, W_out, offsets, n_shared, rng)
    else:
        raise ValueError(f"`routing.partition` is {kind!r}; it must be contiguous, random, kmeans or coactivation.")
    for start, end in pairwise(offsets):
        order[start:end].sort()
    return Partition(torch.from_numpy(order), offsets)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy().copy()


def _coactivation_order(
    acts: Tensor, W_out: Tensor, offsets: tuple[int, ...], n_shared: int, rng: np.random.Generator
) -> np.ndarray:
    contribution = acts.detach().float().abs() * W_out.detach().float().norm(dim=1)
    mean = _array(contribution.mean(0))
    shared = np.argsort(-mean, kind="stable")[: offsets[n_shared]]
    rest = np.setdiff1d(np.arange(len(mean)), shared)
    sizes = np.diff(offsets)[n_shared:]
    if sizes.max() == 1:  # single neurons need no grouping
        return np.concatenate([shared, rest])

    centred = contribution - contribution.mean(0)
    covariance = _array(centred.T @ centred / len(centred))
    covariance, mean = covariance[np.ix_(rest, rest)], mean[rest]
    deviation = np.sqrt(np.diag(covariance))
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-6 * deviation.max())
    # Among spectral, Leiden and plain k-means starts with and without refinement, this one lost least (docs/log.md).
    graph = np.maximum(covariance * scale[:, None] * scale[None], 0.0)
    np.fill_diagonal(graph, 0.0)
    labels = balanced_kmeans(spectral_embedding(graph, len(sizes)), sizes, rng)
    labels = swap_refinement(covariance + np.outer(mean, mean), labels, len(sizes))
    return np.concatenate([shared, rest[np.argsort(labels, kind="stable")]])
