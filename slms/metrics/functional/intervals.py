"""95 % intervals over documents and seeds. Shapes: d documents, g document groups, r resamples, s seeds.

Ratios of sums (loss per token) are bootstrapped over documents. Entropies and mutual informations are not, because a
bootstrap repeats documents, and repeated events look like structure. They use the delete-a-group jackknife, in which no
event occurs twice. How often nominal 95 % intervals cover the true specialization index of a planted layer (8 pathways,
50 classes, documents of 50 tokens, each with its own class mix; 60 samples):

    =========  =========  =====================  ==========================================
    documents  jackknife  bootstrap (documents)  bootstrap's centre − estimate (truth .078)
    =========  =========  =====================  ==========================================
           40       .88                    .08                                       +.0106
          400       .92                    .52                                       +.0013
    =========  =========  =====================  ==========================================

Differences between arms of a study are resampled over seeds and documents, and their interval is Student's, since the
percentiles of three resampled seeds are narrower than the truth (`paired_over_seeds` has the numbers).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    value: float
    low: float
    """lower end of the 95 % interval"""
    high: float
    """upper end of the 95 % interval"""
    n: int
    """tokens behind the value"""


def student_t(degrees: int) -> float:
    """The .975 quantile of Student's t (Abramowitz & Stegun 26.7.5; within .03 for 3 degrees of freedom or more)."""
    if degrees < 3:
        return {1: 12.706, 2: 4.303}[degrees]
    z = 1.959964
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / degrees**power for power, term in enumerate(terms))


def jackknife(leave_one_out: Tensor) -> Tensor:
    """Half-width of a statistic's 95 % interval, from its values [g, ...] with each document group left out in turn.

    se² = (g − 1)/g · Σ (θ₍ᵢ₎ − θ̄)² (Kott 2001), times the .975 quantile of Student's t at g − 1 degrees of freedom.
    NaN with fewer than two groups.
    """
    g = len(leave_one_out)
    if g < 2:
        return torch.full(leave_one_out.shape[1:], torch.nan, dtype=torch.float64)
    return student_t(g - 1) * jackknife_variance(leave_one_out).sqrt()


def jackknife_variance(leave_one_out: Tensor) -> Tensor:
    """(g − 1)/g · Σ (θ₍ᵢ₎ − θ̄)² of a statistic's values [g, ...] without each group; NaN with fewer than two."""
    g = len(leave_one_out)
    if g < 2:
        return torch.full(leave_one_out.shape[1:], torch.nan, dtype=torch.float64)
    return (g - 1) / g * (leave_one_out.double() - leave_one_out.double().mean(0)).square().sum(0)


def widened(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Half the width of a 95 % interval, and the standard error, whose square is a sum of independent variances.

    Student's t at Welch–Satterthwaite degrees of freedom, rounded down.

    Args:
        parts: each variance with its degrees of freedom.
    """
    total = sum(variance for variance, _ in parts)
    if not math.isfinite(total):
        return torch.nan, torch.nan
    degrees = total**2 / sum(variance**2 / free for variance, free in parts) if total > 0 else 1
    return student_t(max(1, int(degrees))) * total**0.5, total**0.5


class Beyond(NamedTuple):
    """How far a number is above what a control gives over several seeds."""

    control: float
    """mean over seeds"""
    control_sd: float
    """standard deviation over seeds; NaN with one"""
    difference: float
    """value − control"""
    difference_low: float
    """lower end of the 95 % interval over documents and seeds"""
    difference_high: float


def beyond_control(value: float, left_out: Tensor, controls: Tensor, controls_left_out: Tensor) -> Beyond:
    """The difference of a number to that of a control measured on the same documents with several seeds.

    se² = se²_documents + sd²_seeds · (1 + 1/s), with the delete-a-group jackknife of the paired difference and the
    sd of the controls; times the .975 quantile of Student's t at Welch–Satterthwaite degrees of freedom. The term 1
    makes it a prediction: the interval of a control with one more seed holds 0 in 95 % of cases, so what lies outside
    is more than a lucky seed. Without two seeds or two document groups the interval is NaN.

    Args:
        left_out: [g], the number without each document group; controls: [s]; controls_left_out: [s, g].
    """
    controls, left_out = controls.double(), left_out.double()
    mean, n_seeds, g = float(controls.mean()), len(controls), len(left_out)
    sd = float(controls.std()) if n_seeds > 1 else torch.nan
    nan = torch.nan
    if n_seeds < 2 or g < 2:
        return Beyond(mean, sd, value - mean, nan, nan)
    of_documents = float(jackknife_variance(left_out - controls_left_out.double().mean(0)))
    half, _ = widened([(of_documents, g - 1), (sd**2 * (1 + 1 / n_seeds), n_seeds - 1)])
    return Beyond(mean, sd, value - mean, value - mean - half, value - mean + half)


def _resampled(sums: Tensor, n_resamples: int, seed: int) -> Tensor:
    """Sums [r, k] of the rows of `sums` [d, k] over documents drawn with replacement."""
    return torch.einsum("rd,dk->rk", times_drawn(len(sums), n_resamples, torch.Generator().manual_seed(seed)), sums)


def times_drawn(d: int, n_resamples: int, generator: torch.Generator) -> Tensor:
    """How often each of d documents is drawn in each resample of d with replacement, float64 [r, d]."""
    drawn = torch.randint(d, (n_resamples, d), generator=generator)
    ones = torch.ones(1).double().expand(drawn.shape)
    return torch.zeros(n_resamples, d, dtype=torch.float64).scatter_add_(1, drawn, ones)


def document_loss(nll: Tensor, tokens: Tensor, n_resamples: int = 1000, seed: int = 0) -> Interval:
    """Loss in nats per token, with a bootstrap interval over documents; exp of its fields gives the perplexity's.

    The interval of a single document is NaN.

    Args:
        nll: [d], summed negative log-likelihood of each document, nats.
        tokens: [d], predicted tokens of each document; documents without any are dropped.
    """
    return _ratio(nll, tokens, n_resamples, seed)


def paired_difference(nll: Tensor, other: Tensor, tokens: Tensor, n_resamples: int = 1000, seed: int = 0) -> Interval:
    """Difference in nats per token of two models on the same documents: `nll` − `other`, bootstrapped in pairs.

    The arguments are those of `document_loss`; the two models must share `tokens`, hence the tokenizer.
    """
    if nll.shape != other.shape:
        raise ValueError(f"nll is {tuple(nll.shape)}, other {tuple(other.shape)}; both must hold the same documents.")
    return _ratio(nll.double() - other.double(), tokens, n_resamples, seed)


def paired_over_seeds(nll: Tensor, other: Tensor, tokens: Tensor, n_resamples: int = 2000, seed: int = 0) -> Interval:
    """Difference in nats per token of two arms, `nll` − `other`, each the mean of the same seeds on the same documents.

    Each resample draws seeds, then documents, with replacement (Owen 2007, the pigeonhole bootstrap: a document drawn
    is drawn for all seeds and both arms). Seeds' deviations are widened by √(s / (s − 1)), so that the resamples'
    variance is not too small by that share. The interval is value ± t · sd of the resamples, with Satterthwaite's
    degrees of freedom ν of the two parts of the variance, V_seed = Var_s(δ_s) / s and V_document:

        ν = (V_seed + V_document)² / (V_seed² / (s − 1) + V_document² / (d − 1)),    rounded down.

    How often the interval covers the truth, in 1000 made studies of 60 documents (`tests/metrics/functional`):

        =====  ===================================  ====  ===========
        seeds  sd of seeds / of the documents' mean  this  percentiles
        =====  ===================================  ====  ===========
            3                                    0  .954         .944
            3                                    1  .952         .928
            3                                    4  .928         .818
            5                                    1  .949         .943
        =====  ===================================  ====  ===========

    With one seed the interval is over documents alone and says nothing of seeds.

    Args:
        nll: [s, d], summed negative log-likelihood of each document by seed, nats.
        other: [s, d], of the other arm with the same seeds.
        tokens: [d], predicted tokens of each document, more than 0.

    Raises:
        ValueError: the shapes differ, or a document has no tokens.
    """
    if nll.shape != other.shape or nll.dim() != 2 or nll.shape[1:] != tokens.shape:
        shapes = f"nll is {tuple(nll.shape)}, other {tuple(other.shape)}, tokens {tuple(tokens.shape)}"
        raise ValueError(f"{shapes}; they must be [seeds, documents] twice and [documents].")
    if not len(tokens) or tokens.min() <= 0:
        raise ValueError("tokens must be more than 0 in every document.")
    if len(nll) == 1:
        return paired_difference(nll[0], other[0], tokens, n_resamples, seed)
    difference, count = nll.double() - other.double(), tokens.double()
    s, d = difference.shape
    of_seed, n = difference.sum(1) / count.sum(), int(count.sum())
    value = float(of_seed.mean())
    if d == 1:
        return Interval(value, torch.nan, torch.nan, n)
    drawn = seed_resamples(difference, count, n_resamples, seed)
    seeds, documents = float(of_seed.var() / s), float(drawn.mean(1).var())
    generator = torch.Generator().manual_seed(seed + 1)
    chosen = torch.randint(s, (n_resamples, s), generator=generator)
    centre = drawn.mean(1, keepdim=True)
    widened = centre + (s / (s - 1)) ** 0.5 * (drawn - centre)
    sd = float(widened.gather(1, chosen).mean(1).std())
    degrees = (seeds + documents) ** 2 / max(seeds**2 / (s - 1) + documents**2 / (d - 1), 1e-300)
    half = student_t(max(1, int(degrees))) * sd
    return Interval(value, value - half, value + half, n)


def seed_resamples(difference: Tensor, tokens: Tensor, n_resamples: int, seed: int) -> Tensor:
    """Differences per token [r, s] of each seed over documents drawn with replacement, the same for all seeds."""
    sums = _resampled(torch.cat([difference.T, tokens[:, None]], 1), n_resamples, seed)
    return sums[:, :-1] / sums[:, -1:]


def _ratio(numerator: Tensor, tokens: Tensor, n_resamples: int, seed: int) -> Interval:
    if numerator.shape != tokens.shape or numerator.dim() != 1:
        raise ValueError(f"nll is {tuple(numerator.shape)}, tokens {tuple(tokens.shape)}; both must be [documents].")
    sums = torch.stack([numerator.double().cpu(), tokens.double().cpu()], dim=1)[tokens.cpu() > 0]
    if not len(sums):
        raise ValueError("tokens are all 0; at least one document must have a predicted token.")
    total = sums.sum(0)
    if len(sums) == 1:  # resampled, one document is always itself
        return Interval(value=float(total[0] / total[1]), low=torch.nan, high=torch.nan, n=int(total[1]))
    drawn = _resampled(sums, n_resamples, seed)
    low, high = torch.quantile(drawn[:, 0] / drawn[:, 1], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(value=float(total[0] / total[1]), low=low, high=high, n=int(total[1]))


def proportion(hits: Tensor) -> Interval:
    """Mean of hits [n] (1 right, 0 wrong, ½ a tie) with Wilson's 95 % score interval (Wilson 1927, eq. 6).

    Unlike p ± 1.96 se, it stays inside [0, 1] and is not empty at p = 0 or 1. `n` counts hits; without any, all is NaN.
    """
    n = len(hits)
    if n == 0:
        return Interval(torch.nan, torch.nan, torch.nan, 0)
    p, z = float(hits.double().mean()), 1.959964
    centre, spread = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return Interval(p, (centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n), n)
