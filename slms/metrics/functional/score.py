"""A headline number with its interval, permutation null and ceiling. Shapes: u units (pathways, neurons)."""

from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional.intervals import jackknife


class Score(NamedTuple):
    """The numbers of a layer and of its units; each is at most 1, and 0 in expectation for random choices."""

    value: float
    """the layer's: mean over choices, so each unit weighs by its load"""
    low: float
    """lower end of the 95 % interval over documents (delete-a-group jackknife); NaN with fewer than two
    groups; covers more than 95 % if `value` is near 0, because the jackknife overstates degenerate statistics"""
    high: float
    """upper end of this interval"""
    null_mean: float
    """score of random choices with the same loads, which has been subtracted"""
    null_sd: float
    """standard deviation of `value` under that null"""
    z: float
    """value / null_sd"""
    ceiling: float
    """the most that these loads and classes allow; value = ceiling if the class decides every choice"""
    n: int
    """tokens counted"""
    units: Tensor
    """[u], value of each unit; NaN for a unit with too few events"""
    units_z: Tensor
    """[u], value / null_sd of each unit"""
    left_out: Tensor | None = None
    """[g], the layer's number without each document group, for paired intervals (`beyond_control`)"""


def undefined(n: int, n_units: int) -> Score:
    """The score of a layer about which `n` tokens tell nothing."""
    units = torch.full([n_units], torch.nan, dtype=torch.float64)
    nan = torch.nan
    return Score(nan, nan, nan, nan, nan, nan, nan, n=n, units=units, units_z=units.clone())


def mean_score(values: Tensor, groups: Tensor) -> Score:
    """The mean of shares [n] over tokens at which it is not NaN, with its interval over document groups [n]."""
    known = values.isfinite()
    values, groups = values[known].double().cpu(), groups[known].cpu()
    if not len(values):
        return undefined(0, 0)
    _, index = groups.unique(return_inverse=True)
    n_groups = int(index.max()) + 1
    sums = torch.zeros(n_groups, dtype=torch.float64).index_add_(0, index, values)
    sizes = torch.bincount(index, minlength=n_groups)
    left_out = (sums.sum() - sums) / (len(values) - sizes)
    return measured(float(values.mean()), left_out, len(values), ceiling=1.0)


def measured(value: float, left_out: Tensor, n: int, ceiling: float = torch.nan) -> Score:
    """The score of a number without a null of its own, from its values [g] without each document group."""
    half, nan = float(jackknife(left_out)), torch.nan
    nothing = torch.empty(0, dtype=torch.float64)
    return Score(value, value - half, value + half, nan, nan, nan, ceiling, n, nothing, nothing, left_out)


def against_null(value: float, half: float, null_mean: float, null_sd: float) -> dict[str, float]:
    """The fields of a score that follow from its value, the half-width of its interval and its null."""
    z = value / null_sd if null_sd > 0 else torch.nan
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "null_mean": null_mean,
        "null_sd": null_sd,
        "z": z,
    }


def layer_null_sd(weights: Tensor, sd: Tensor, together: Tensor | None, n: int) -> float:
    """The null sd of Σ w_u x_u, where x_u is quadratic in the counts of unit u.

    Permuting labels leaves the rows of choices whole, so units chosen together have correlated counts, with the
    correlation ρ of the choices themselves. Quadratic forms of two Gaussians correlate as ρ² (Isserlis):
    sd² = Σ_uv w_u w_v sd_u sd_v ρ_uv². The square of a correlation measured on n tokens is (1 − ρ²)²/n too large on
    average, which adds up over many units, and is subtracted.

    Args:
        weights: [u], summing to 1; sd: [u], each unit's null sd.
        together: [u, u], from `joint_choices`; None treats the units as independent.
        n: tokens behind `together`.
    """
    scaled = weights * sd
    if together is None:
        return float(scaled.square().sum().sqrt())
    rate = together.double().cpu() / n
    p = rate.diagonal()
    scale = (p * (1 - p)).sqrt()
    correlation = (rate - torch.outer(p, p)) / torch.outer(scale, scale).clamp(min=1e-12)
    squared = correlation.square()
    squared -= (1 - squared).square() / n
    squared.fill_diagonal_(1.0)
    # Noise alone can push the sum below its diagonal.
    variance = torch.einsum("u,uw,w->", scaled, squared, scaled)
    return float(torch.maximum(variance, scaled.square().sum()).sqrt())


def share_beyond_chance(z: Tensor, rate: float = 0.05) -> float:
    """The share of units [u] whose z is beyond chance at a false-discovery rate (Benjamini & Hochberg 1995).

    The test is one-sided; the share is NaN if no unit has a z.
    """
    known = z[z.isfinite()]
    if not len(known):
        return torch.nan
    p = (0.5 * torch.erfc(known / 2**0.5)).sort().values
    passes = p <= rate * torch.arange(1, len(p) + 1) / len(p)
    return (int(passes.nonzero().max()) + 1) / len(z) if passes.any() else 0.0
