"""Partitions an MLP's neurons into pathways of equal size.

Shapes: n calibration tokens, f neurons, d model, p pathways.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slms.models.assignment import Contributions, contributions, learned_assignment
from slms.models.clustering import balanced_kmeans, nested, spectral_embedding, swap_refinement

CALIBRATED = ("coactivation", "learned")
"""Kinds that need calibration tokens."""


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
    x: Tensor | None = None,
    k: int | None = None,
) -> Partition:
    """Group the neurons of W_in [f, d] into n_pathways whose sizes differ by at most 1. The seed decides the result.

    ``contiguous``    slices in the dense model's order.
    ``random``        slices of a seeded permutation.
    ``kmeans``        balanced k-means of the unit-length rows of W_in, or of [W_gate W_in] in a gated MLP
                      (MoEfication, arXiv:2110.01786, §3.2).
    ``coactivation``  communities of the graph of positive correlations of e_i = |a_i|·‖w_out_i‖, neuron i's
                      contribution to a token. They are found by balanced k-means of its normalised-cut embedding, then
                      refined by swaps that raise the uncentred co-activation E[e_i e_j] within pathways.

    ``learned``       the assignment with which k pathways, chosen by a linear router, hold most of the contributions'
                      energy; it is learnt by alternating with that router (`slms.models.assignment`).

    acts [n, f] are the inputs of the down-projection on calibration tokens; ``coactivation`` and ``learned`` need them
    and W_out [f, d], and ``learned`` also the MLP's inputs x [n, d] and k, which counts shared pathways. With
    n_shared > 0, their first pathways take the neurons with the largest mean e (CMoE, arXiv:2502.04416, takes those
    with the highest rate), and the other neurons are grouped. The other kinds do not use activations, so their shared
    pathways are simply the first ones. Raises ValueError if P exceeds d_ff, kind is unknown or something needed is
    missing.
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
        labels = nested(
            lambda items, sizes: balanced_kmeans(rows[items], sizes, rng), np.arange(d_ff), np.diff(offsets)
        )
        order = np.argsort(labels, kind="stable")
    elif kind in CALIBRATED:
        if acts is None or W_out is None or (kind == "learned" and (x is None or k is None)):
            raise ValueError(f"`routing.partition` is {kind}; it needs calibration tokens.")
        acts, W_out = acts.detach().float(), W_out.detach().float()
        mean = _array((acts.abs() * W_out.norm(dim=1)).mean(0))
        shared = np.argsort(-mean, kind="stable")[: offsets[n_shared]]
        rest = np.setdiff1d(np.arange(d_ff), shared)
        sizes = np.diff(offsets)[n_shared:]
        if sizes.max() == 1:  # single neurons need no grouping
            labels = np.arange(len(rest))
        elif kind == "coactivation":
            labels = nested(
                lambda items, sizes: _coactivation_labels(acts[:, items], W_out[items], sizes, rng), rest, sizes
            )
        else:
            assert x is not None and k is not None
            of = contributions(x.detach().float(), acts, W_out)
            labels = learned_assignment(Contributions(*(part[:, rest] for part in of)), sizes, k - n_shared, rng)
        order = np.concatenate([shared, rest[np.argsort(labels, kind="stable")]])
    else:
        kinds = "contiguous, random, kmeans, coactivation or learned"
        raise ValueError(f"`routing.partition` is {kind!r}; it must be {kinds}.")
    for start, end in pairwise(offsets):
        order[start:end].sort()
    return Partition(torch.from_numpy(order), offsets)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy().copy()


def _coactivation_labels(acts: Tensor, W_out: Tensor, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    contribution = acts.abs() * W_out.norm(dim=1)
    mean = _array(contribution.mean(0))
    centred = contribution - contribution.mean(0)
    covariance = _array(centred.T @ centred / len(centred))
    deviation = np.sqrt(np.diag(covariance))
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-6 * deviation.max())
    # Among spectral, Leiden and plain k-means starts with and without refinement, this one lost least (docs/log.md).
    graph = np.maximum(covariance * scale[:, None] * scale[None], 0.0)
    np.fill_diagonal(graph, 0.0)
    labels = balanced_kmeans(spectral_embedding(graph, len(sizes)), sizes, rng)
    return swap_refinement(covariance + np.outer(mean, mean), labels, len(sizes))
