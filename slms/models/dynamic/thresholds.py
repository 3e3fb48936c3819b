"""Chooses the largest scores: as many as wanted, or all above a quantile of what calibration showed."""

import torch
from torch import Tensor


def largest(scores: Tensor, k: int) -> Tensor:
    """Choose the k largest of each row, as a bool mask; NaN counts as largest, so that it is kept and not hidden."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(k, sorted=False).indices, True)


def sampled(values: Tensor, size: int = 2**20) -> Tensor:
    """Return at most `size` of the values, evenly spread and sorted, which gives quantiles to three digits."""
    flat = values.flatten()
    return flat[:: -(-len(flat) // size)].float().sort().values


def threshold_at(ordered: Tensor, density: float) -> float:
    """Return the value that a share `density` of the ordered values reaches; −∞ at 1, so that nothing is left out."""
    if density == 1.0:
        return float("-inf")
    return ordered[min(len(ordered) - 1, round((1 - density) * len(ordered)))].item()
