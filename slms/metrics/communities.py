"""Leiden communities of the co-activation graph, their modularity Q and its null. Shapes: n tokens, f neurons."""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional.graph import (
    adjusted_rand_index,
    coactivation,
    nearest_neighbours,
    partition_quality,
    shuffled_tokens,
)
from slms.metrics.functional.intervals import jackknife


class Modularity(NamedTuple):
    q: float
    """modularity of the communities that were found, on the whole graph"""
    low: float
    """lower end of the 95 % interval at these communities (delete-a-group jackknife over tokens); NaN without groups"""
    high: float
    """upper end of this interval"""
    null_mean: float
    """mean Q of the communities found in graphs of token-shuffled neurons"""
    null_sd: float
    z: float
    """(q − null_mean) / null_sd; over R nulls of pure noise, t-distributed with R − 1 degrees of freedom"""
    stability: float
    """mean adjusted Rand index of the communities of every two Leiden seeds"""
    communities: Tensor
    """int64 [f], the community of each neuron, largest first"""
    n_communities: int
    """communities of more than one neuron"""
    n: int
    """tokens"""


def leiden(adjacency: Tensor, neighbours: int = 32, seed: int = 0) -> Tensor:
    """Communities [f] of the graph of each neuron's strongest `neighbours`, numbered from the largest down.

    Leiden (Traag et al. 2019) at resolution 1. At f = 4096 the whole graph has 8M edges, too many; 32 neighbours
    recover 16 planted blocks of correlation .02 from 2048 tokens with an adjusted Rand index of .94 (8: .29; 16: .72;
    64: .98 in twice the time). igraph's own Leiden finds what leidenalg's does in a fifteenth of the time.
    """
    import igraph

    pairs, weights = nearest_neighbours(adjacency, neighbours)
    graph = igraph.Graph(n=len(adjacency), edges=pairs.cpu().numpy())
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden("modularity", weights=weights.cpu().tolist(), n_iterations=2)
    finally:
        igraph.set_random_number_generator(random)  # igraph's default: Python's own
    membership = torch.tensor(found.membership)
    order = torch.bincount(membership).argsort(descending=True, stable=True)
    return order.argsort()[membership]


def modularity(
    activations: Tensor,
    groups: Tensor | None = None,
    n_nulls: int = 10,
    n_seeds: int = 3,
    neighbours: int = 32,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> Modularity:
    """Modularity Q of the communities of co-active neurons, against neurons whose tokens are shuffled.

    Communities are found on the nearest-neighbour graph and judged on the whole positive correlation graph, both for
    the neurons and for the nulls. Optimised Q is positive on noise and depends on width, tokens and the tails of the
    activations, so only the difference from the null means anything. The null must keep the tails: with a
    Gaussian null of the same size, independent log-normal neurons (f = 1024, n = 2000) would score z = 100.

    For 4096 neurons, 2048 tokens and 10 nulls it takes 26 s on one core.

    Args:
        activations: [n, f], at most a few thousand tokens drawn over all documents (`CoActivation` draws them); |a|
            gives the graph that the `coactivation` partition uses.
        groups: int64 [n], document group of each token, for the interval.
        n_nulls: number of shuffled copies; n_seeds: number of Leiden seeds behind `stability`.
        progress: called before each step with its name.
    """
    if activations.dim() != 2 or min(activations.shape) < 2:
        raise ValueError(f"activations is {tuple(activations.shape)}; it must be [tokens, neurons], both at least 2.")
    if n_nulls < 2 or n_seeds < 2:
        raise ValueError(f"n_nulls is {n_nulls}, n_seeds {n_seeds}; a null and a stability need at least 2.")
    generator = torch.Generator().manual_seed(seed)
    progress("communities")
    adjacency = coactivation(activations)
    found = [leiden(adjacency, neighbours, seed + i) for i in range(n_seeds)]
    q = partition_quality(adjacency, found[0])
    pairs = [(a, b) for i, a in enumerate(found) for b in found[:i]]

    nulls = []
    for i in range(n_nulls):
        progress(f"null {i + 1} of {n_nulls}")
        shuffled = coactivation(shuffled_tokens(activations, generator))
        nulls.append(partition_quality(shuffled, leiden(shuffled, neighbours, seed + n_seeds + i)))
    null = torch.tensor(nulls)

    half = torch.nan
    if groups is not None and len(groups.unique()) > 1:  # one document has no interval
        progress("interval")
        kept = [activations[(groups != group).to(activations.device)] for group in groups.unique()]
        half = float(jackknife(torch.tensor([partition_quality(coactivation(part), found[0]) for part in kept])))
    mean, sd = float(null.mean()), float(null.std())
    return Modularity(
        q=q,
        low=q - half,
        high=q + half,
        null_mean=mean,
        null_sd=sd,
        z=(q - mean) / sd if sd > 0 else torch.nan,
        stability=sum(adjusted_rand_index(a, b) for a, b in pairs) / len(pairs),
        communities=found[0],
        n_communities=int((torch.bincount(found[0]) > 1).sum()),
        n=len(activations),
    )
