"""Causal specialization: where the loss goes when a unit is taken away, and where when random neurons are.

Shapes: d documents, u units, c classes, r permutations, b resamples of the documents.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional.intervals import Beyond, jackknife_variance, student_t, times_drawn, widened

FEWEST_TOKENS = 30  # tokens of a class in each half of the documents; the mean over fewer says nothing
POWER_QUANTILE = 0.8416  # the .80 quantile of the normal: an effect is found in four of five cases


class CausalScore(NamedTuple):
    """The share of each unit's loss increase that falls on its best class, minus the share under permuted labels."""

    value: float
    """the layer's: Σ_u share_u · effect_u / Σ_u effect_u, minus `null_mean`; its expectation is 0 if units serve all
    classes alike"""
    low: float
    """lower end of the 95 % interval over documents (bootstrap)"""
    high: float
    """upper end"""
    null_mean: float
    """score of permuted labels, which is subtracted from `value`; a little more than 1/c"""
    null_sd: float
    """standard deviation of that score over permutations"""
    units: Tensor
    """[u], each unit's share minus its null; NaN for a unit whose removal raises the loss of no class"""
    best: Tensor
    """int64 [u], the class whose mean loss rises most, over all documents; −1 with fewer than two classes"""
    n_classes: int
    """number of classes with enough tokens to count"""
    on_best: Tensor
    """[u], nats on the class that the other half of the documents chose, both ways round"""
    rise: Tensor
    """[u], nats on all classes"""
    resampled: tuple[Tensor, Tensor]
    """`on_best` and `rise` [b, u] of documents drawn with replacement; all scores of as many documents draw the same"""
    n_documents: int

    @property
    def ratio(self) -> float:
        """Σ_u on_best / Σ_u rise, from which `null_mean` has not been subtracted."""
        return float(self.on_best.sum() / self.rise.sum())


def causal_specialization(
    sums: Tensor, totals: Tensor, null_sums: Tensor, null_totals: Tensor, n_resamples: int = 500, seed: int = 0
) -> CausalScore:
    """How far a unit's effect on the loss falls on one class (after Michel et al. 2019, arXiv 1905.10650, section 4).

    The effect on class c is the mean increase in nats over its tokens, so a class weighs the same however frequent it
    is. One half of the documents chooses a unit's best class, and the other half gives its share
    max(0, Δ_c*) / Σ_c max(0, Δ_c); both ways round count, so that noise is not taken for a preference. Documents of
    even index are one half. Each half is resampled by itself, so that no document stands on both sides; the interval is
    value ± t · sd of the resamples, because their mean is shifted by the noise that resampling adds.

    Args:
        sums: [d, u, c], loss increase in nats, summed over the tokens of each class, when unit u is ablated.
        totals: [d, c], number of tokens.
        null_sums: [r, 2, u, c]; null_totals: [r, 2, c], the same by half, with labels permuted among the tokens.
    """
    if sums.dim() != 3 or totals.shape != sums[:, 0].shape or null_sums.shape[1:] != (2, *sums.shape[1:]):
        shapes = f"sums {tuple(sums.shape)}, totals {tuple(totals.shape)} and null_sums {tuple(null_sums.shape)}"
        raise ValueError(f"{shapes} must be [d, u, c], [d, c] and [r, 2, u, c].")
    sums, totals, null_sums, null_totals = (x.double().cpu() for x in (sums, totals, null_sums, null_totals))
    even = torch.arange(len(totals)) % 2 == 0
    used = totals.sum(1) > 0
    halves = [even & used, ~even & used]
    enough = torch.minimum(*(totals[half].sum(0) for half in halves)) >= FEWEST_TOKENS
    d, n_units, n_classes = int(used.sum()), sums.shape[1], int(enough.sum())
    if min(int(half.sum()) for half in halves) < 2 or n_classes < 2:
        nan, nothing = torch.nan, torch.full([n_units], torch.nan, dtype=torch.float64)
        empty = (nothing[None], nothing[None])
        best = torch.full([n_units], -1)
        return CausalScore(nan, nan, nan, nan, nan, nothing, best, n_classes, nothing, nothing, empty, d)
    kept = enough.nonzero()[:, 0]
    sums, totals, null_sums, null_totals = (x[..., enough] for x in (sums, totals, null_sums, null_totals))

    generator = torch.Generator().manual_seed(seed)
    means, drawn = [], []
    for half in halves:
        means.append(sums[half].sum(0) / totals[half].sum(0))
        times = times_drawn(int(half.sum()), n_resamples, generator)
        resampled = torch.einsum("bd,duc->buc", times, sums[half])
        drawn.append(resampled / torch.einsum("bd,dc->bc", times, totals[half]).clamp(min=1)[:, None])
    on_best, rise = _shares(*means)
    of_draws = _shares(*drawn)
    null = _shares(*(null_sums / null_totals.clamp(min=1)[:, :, None]).unbind(1))
    null_layer = _ratio(null[0].sum(-1), null[1].sum(-1))
    null_mean, null_sd = float(null_layer.mean()), _variance(null_layer) ** 0.5
    value = float(_ratio(on_best.sum(), rise.sum())) - null_mean
    half = student_t(d - 1) * _variance(_ratio(of_draws[0].sum(-1), of_draws[1].sum(-1))) ** 0.5
    return CausalScore(
        value,
        value - half,
        value + half,
        null_mean,
        null_sd,
        units=_ratio(on_best, rise) - _ratio(*null).nanmean(0),
        best=kept[(sums.sum(0) / totals.sum(0)).argmax(-1)],
        n_classes=n_classes,
        on_best=on_best,
        rise=rise,
        resampled=of_draws,
        n_documents=d,
    )


def beyond_random_sets(score: CausalScore, random: CausalScore) -> Beyond:
    """How far causal specialization is above that of s random sets, on the same documents.

    se² = se²_documents + V·(1 + s/u). The first is the variance of the paired difference over resampled documents; V
    is the variance of the random sets' score over sets (delete-one jackknife), and s/u makes it the variance for as
    many random sets as there are units: what lies outside is more than a lucky partition of the neurons. The interval
    is ± t at Welch–Satterthwaite degrees of freedom.
    """
    of_sets = _variance_over_sets(random)
    apart = _layer(score) - _layer(random)
    control, sd = random.value, of_sets**0.5
    share = 1 + len(random.rise) / len(score.rise)
    parts = [(_variance(apart), score.n_documents - 1), (of_sets * share, len(random.rise) - 1)]
    half = widened(parts)[0]
    difference = score.value - control
    return Beyond(control, sd, difference, difference - half, difference + half)


def smallest_effect(random: CausalScore, n_units: int) -> float:
    """The smallest difference to random sets that `beyond_random_sets` finds with a power of 80 %.

    It is known before any unit is ablated: the variance over documents comes from the difference of one half of the
    random sets to the other, scaled to the number of sets on both sides of the real comparison.
    """
    s = len(random.rise)
    if s < 4:
        return torch.nan
    one, other = (_layer(random, part) for part in (slice(0, s // 2), slice(s // 2, None)))
    sizes = 1 / (s // 2) + 1 / (s - s // 2)
    documents = _variance(one - other) * (1 / n_units + 1 / s) / sizes
    parts = [(documents, random.n_documents - 1), (_variance_over_sets(random) * (1 + s / n_units), s - 1)]
    half, se = widened(parts)
    return half + POWER_QUANTILE * se


def _layer(score: CausalScore, part: slice = slice(None)) -> Tensor:
    """The layer's ratio [b] of each resample of the documents, over a part of the units."""
    on_best, rise = score.resampled
    return _ratio(on_best[:, part].sum(-1), rise[:, part].sum(-1))


def _variance_over_sets(random: CausalScore) -> float:
    without = (random.on_best.sum() - random.on_best) / (random.rise.sum() - random.rise)
    return float(jackknife_variance(without))


def _variance(x: Tensor) -> float:
    return float(x.var()) if len(x) > 1 else torch.nan


def _shares(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The increase on the other half's best class, and on all classes, [..., u], of mean increases [..., u, c]."""
    on_best, rise = torch.zeros_like(first[..., 0]), torch.zeros_like(first[..., 0])
    for choose, read in ((first, second), (second, first)):
        positive = read.clamp(min=0)
        on_best += positive.gather(-1, choose.argmax(-1, keepdim=True))[..., 0]
        rise += positive.sum(-1)
    return on_best, rise


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b.clamp(min=1e-300), torch.nan)
