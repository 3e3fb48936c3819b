"""The co-activation graph of neurons and the modularity of a given partition of it.

Shapes: n tokens, f neurons, c communities, g token groups. An edge is the positive part of a Pearson correlation.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PartitionModularity(NamedTuple):
    q: float
    """modularity of the given partition"""
    null_mean: float
    """mean Q of random partitions of the same sizes"""
    null_sd: float
    z: float
    """(q − null_mean) / null_sd"""


def coactivation(activations: Tensor) -> Tensor:
    """Adjacency [f, f] of the co-activation graph of activations [n, f]: max(0, correlation), 0 on the diagonal.

    Neurons that never change have no edges. The result is float32 on the activations' device.
    """
    centred = activations.float() - activations.float().mean(0)
    norm = centred.norm(dim=0)
    # A constant column leaves rounding residue, whose correlations would be edges of noise.
    alive = norm > 1e-6 * activations.float().norm(dim=0).clamp(min=1e-30)
    unit = torch.where(alive, centred / norm.clamp(min=1e-30), 0.0)
    return torch.einsum("nf,ng->fg", unit, unit).clamp(min=0).fill_diagonal_(0)


def partition_quality(adjacency: Tensor, labels: Tensor) -> float:
    """Newman's modularity Q = Σ_c [W_cc/2m − (s_c/2m)²] of a partition (Newman 2004, weighted); 0 if there is no edge.

    Args:
        adjacency: [f, f], symmetric, not negative, 0 on the diagonal; labels: int64 [f].
    """
    member = torch.nn.functional.one_hot(labels.to(adjacency.device)).double()
    strength = adjacency.sum(0, dtype=torch.float64)
    total = strength.sum()
    if total == 0:
        return 0.0
    inside = (member * torch.einsum("fg,gc->fc", adjacency, member.to(adjacency.dtype))).sum(dtype=torch.float64)
    return float(inside / total - (torch.einsum("f,fc->c", strength, member) / total).square().sum())


def partition_modularity(
    adjacency: Tensor, labels: Tensor, n_permutations: int = 100, seed: int = 0
) -> PartitionModularity:
    """Q of a given partition (a model's pathways) against random partitions of the same sizes.

    Nothing is optimised, so noise scores 0 on average at any width. The arguments are those of `partition_quality`.
    """
    if labels.shape != adjacency.shape[:1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; it must be [{len(adjacency)}], one for each neuron.")
    generator = torch.Generator().manual_seed(seed)
    labels = labels.cpu()
    null = torch.tensor(
        [
            partition_quality(adjacency, labels[torch.randperm(len(labels), generator=generator)])
            for _ in range(n_permutations)
        ]
    )
    q, mean, sd = partition_quality(adjacency, labels), float(null.mean()), float(null.std())
    return PartitionModularity(q, mean, sd, (q - mean) / sd if sd > 0 else torch.nan)


def nearest_neighbours(adjacency: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Edges of each neuron to its k strongest neighbours, made symmetric: pairs [e, 2] with i < j, and weights [e]."""
    f = len(adjacency)
    weight, neighbour = adjacency.topk(min(k, f - 1), dim=1)
    neuron = torch.arange(f, device=adjacency.device)[:, None].expand_as(neighbour)
    low, high = torch.minimum(neuron, neighbour), torch.maximum(neuron, neighbour)
    pair, index = torch.unique((low * f + high)[weight > 0], return_inverse=True)
    weights = torch.zeros(len(pair), dtype=adjacency.dtype, device=adjacency.device)
    weights[index] = weight[weight > 0]  # an edge found from both ends has one weight
    return torch.stack([pair // f, pair % f], dim=1), weights


def shuffled_tokens(activations: Tensor, generator: torch.Generator) -> Tensor:
    """Put each neuron's activations [n, f] in its own random token order: same marginals, independent neurons."""
    n, f = activations.shape
    order = torch.stack([torch.randperm(n, generator=generator) for _ in range(f)])
    return activations.T.gather(1, order.to(activations.device)).T


def adjusted_rand_index(a: Tensor, b: Tensor) -> float:
    """Agreement of two partitions [f]: 1 if equal, 0 in expectation if independent (Hubert & Arabie 1985)."""
    table = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    table.index_put_((a, b), torch.ones(len(a), dtype=torch.float64), accumulate=True)

    def pairs(x: Tensor) -> Tensor:
        return (x * (x - 1) / 2).sum()

    together, of_a, of_b = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = of_a * of_b / pairs(torch.tensor(float(len(a)), dtype=torch.float64))
    largest = (of_a + of_b) / 2
    return float((together - chance) / (largest - chance)) if largest != chance else 1.0
