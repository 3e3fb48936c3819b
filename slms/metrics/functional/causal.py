"""Causal specialization: where the loss goes when a unit is taken away.

Shapes: g document groups, u units, c classes, r permutations.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional.intervals import jackknife
from slms.metrics.functional.score import against_null

FEWEST_TOKENS = 30  # tokens of a class in each half of the documents; the mean over fewer says nothing


class CausalScore(NamedTuple):
    """The share of each unit's loss increase that falls on its best class, minus the share under permuted labels."""

    value: float
    """the layer's: Σ_u share_u · effect_u / Σ_u effect_u, minus `null_mean`; its expectation is 0 if units serve all
    classes alike"""
    low: float
    """lower end of the 95 % interval over documents (delete-a-group jackknife)"""
    high: float
    """upper end"""
    null_mean: float
    """score of permuted labels, which is subtracted from `value`; a little more than 1/c"""
    null_sd: float
    """standard deviation of that score over permutations"""
    z: float
    """value / null_sd; the null is skewed to the right, so that chance exceeds 3 once in a few dozen times"""
    units: Tensor
    """[u], each unit's share minus its null; NaN for a unit whose removal raises the loss of no class"""
    best: Tensor
    """int64 [u], the class whose mean loss rises most, over all documents; −1 with fewer than two classes"""
    n_classes: int
    """number of classes with enough tokens to count"""


def causal_specialization(sums: Tensor, totals: Tensor, null_sums: Tensor, null_totals: Tensor) -> CausalScore:
    """How far a unit's effect on the loss falls on one class (after Michel et al. 2019, arXiv 1905.10650, section 4).

    The effect on class c is the mean increase in nats over its tokens, so a class weighs the same however frequent it
    is. One half of the documents chooses a unit's best class, and the other half gives its share
    max(0, Δ_c*) / Σ_c max(0, Δ_c); both ways round count, so that noise is not taken for a preference.

    Args:
        sums: [g, u, c], loss increase in nats, summed over the tokens of each class, when unit u is ablated.
        totals: [g, c], number of tokens.
        null_sums: [r, g, u, c]; null_totals: [r, g, c], the same with the labels permuted among the tokens.
    """
    if sums.dim() != 3 or totals.shape != sums[:, 0].shape or null_sums.shape[1:] != sums.shape:
        shapes = f"sums {tuple(sums.shape)}, totals {tuple(totals.shape)} and null_sums {tuple(null_sums.shape)}"
        raise ValueError(f"{shapes} must be [g, u, c], [g, c] and [r, g, u, c].")
    sums, totals, null_sums, null_totals = (x.double().cpu() for x in (sums, totals, null_sums, null_totals))
    used = totals.sum(1) > 0
    sums, totals, null_sums, null_totals = sums[used], totals[used], null_sums[:, used], null_totals[:, used]
    g, n_units, _ = sums.shape
    halves = torch.arange(g) % 2 == 0
    enough = torch.minimum(totals[halves].sum(0), totals[~halves].sum(0)) >= FEWEST_TOKENS
    if g < 4 or int(enough.sum()) < 2:
        nothing = torch.full([n_units], torch.nan, dtype=torch.float64)
        nan, best = torch.nan, torch.full([n_units], -1)
        return CausalScore(nan, nan, nan, nan, nan, nan, units=nothing, best=best, n_classes=int(enough.sum()))
    kept = enough.nonzero()[:, 0]
    sums, totals, null_sums, null_totals = (x[..., enough] for x in (sums, totals, null_sums, null_totals))

    on_best, whole = _shares(sums, totals, halves)
    nulls = [_shares(s, t, halves) for s, t in zip(null_sums, null_totals, strict=True)]
    null_layer = torch.stack([_ratio(a.sum(), b.sum()) for a, b in nulls])
    null_units = torch.stack([_ratio(a, b) for a, b in nulls]).nanmean(0)
    null_mean, null_sd = float(null_layer.mean()), float(null_layer.std())
    value = float(_ratio(on_best.sum(), whole.sum())) - null_mean
    left_out = []
    for group in range(g):
        rest = torch.arange(g) != group
        part = _shares(sums[rest], totals[rest], halves[rest])
        left_out.append(_ratio(part[0].sum(), part[1].sum()))
    half = float(jackknife(torch.stack(left_out)))
    return CausalScore(
        **against_null(value, half, null_mean, null_sd),
        units=_ratio(on_best, whole) - null_units,
        best=kept[(sums.sum(0) / totals.sum(0)).argmax(-1)],
        n_classes=len(kept),
    )


def _shares(sums: Tensor, totals: Tensor, halves: Tensor) -> tuple[Tensor, Tensor]:
    """The increase on the other half's best class, and on all classes, [u] each, summed over both ways round."""
    first, second = (sums[half].sum(0) / totals[half].sum(0).clamp(min=1) for half in (halves, ~halves))
    on_best, whole = torch.zeros(len(first), dtype=torch.float64), torch.zeros(len(first), dtype=torch.float64)
    for choose, read in ((first, second), (second, first)):
        rise = read.clamp(min=0)
        on_best += rise.gather(1, choose.argmax(1, keepdim=True))[:, 0]
        whole += rise.sum(1)
    return on_best, whole


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b.clamp(min=1e-300), torch.nan)
