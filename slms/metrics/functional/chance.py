"""The permutation null in closed form: moments of count statistics when the classes are shuffled among the tokens.

Shuffling leaves a stratum's n tokens, its class totals and each unit's load m as they are; the count K of a unit in a
class of a tokens is then hypergeometric(n, a, m), and the counts of a unit in all classes multivariate hypergeometric.
Expectations of sums over classes need the marginals only, so they are exact, for any number of choices a token.

Shapes: s strata, u units, c classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Above this mean, the moments of K ln K come from its Taylor series, whose next term is below 1e-4 there; below it,
# from the probabilities of K, up to more than 8 standard deviations beyond the mean.
_TAYLOR_FROM = 50
_SUPPORT = 130
# Cells × support held at once, half a megabyte of doubles for each temporary: they stay in the cache, and that takes a
# third of the time that 32 MB take (131k tokens, 256 units, 18 classes, 32 strata).
_CHUNK = 60_000


class Moments(NamedTuple):
    """Moments [s, u, c] of f(K) = K ln K − correction · [K > 0] = slope · K + constant + residual (least squares)."""

    mean: Tensor
    slope: Tensor
    residual_sd: Tensor


def moments(totals: Tensor, load: Tensor, correction: float = 0.0) -> Moments:
    """Compute the moments of f(K) for every stratum, unit and class.

    Args:
        totals: float64 [s, c], tokens a of each class; load: float64 [s, u], tokens m at which the unit is on.
        correction: ½ to include the Miller–Madow term, which counts the classes seen.
    """
    n = totals.sum(-1, keepdim=True).expand_as(totals)
    # Zipf totals repeat: one computation for each distinct (stratum, total).
    stratum = torch.arange(len(totals)).double()[:, None].expand_as(totals)
    pairs, inverse = torch.unique(torch.stack([stratum, n, totals], -1).flatten(0, 1), dim=0, return_inverse=True)
    m = load[pairs[:, 0].long()]
    n, a = pairs[:, 1, None].expand_as(m), pairs[:, 2, None].expand_as(m)
    parts = [torch.zeros_like(m) for _ in Moments._fields]
    possible = (a > 0) & (m > 0)
    large = possible & (m * a >= _TAYLOR_FROM * n)
    for cells, method in ((large, _taylor), (possible & ~large, _enumerate)):
        for part, values in zip(parts, method(n[cells], a[cells], m[cells], correction), strict=True):
            part[cells] = values
    return Moments(*(part[inverse].unflatten(0, totals.shape).transpose(1, 2) for part in parts))


def _variance(n: Tensor, a: Tensor, m: Tensor) -> Tensor:
    return m * a / n * (1 - a / n) * (n - m) / (n - 1).clamp(min=1)


def _taylor(n: Tensor, a: Tensor, m: Tensor, correction: float) -> Moments:
    """Moments by Taylor series in K − μ: E f to fourth order, its slope to third, the residual to second."""
    mu, variance = m * a / n, _variance(n, a, m)
    third = variance * (n - 2 * a) * (n - 2 * m) / (n * (n - 2).clamp(min=1))
    mean = mu * mu.log() + variance / (2 * mu) - third / (6 * mu**2) + variance**2 / (4 * mu**3) - correction
    skew = torch.where(variance > 0, third / variance.clamp(min=1e-12), 0.0)
    slope = mu.log() + 1 + skew / (2 * mu) - variance / (2 * mu**2)
    return Moments(mean, slope, variance / (mu * 2**0.5))


def _enumerate(n: Tensor, a: Tensor, m: Tensor, correction: float) -> Moments:
    """Moments as sums over the probabilities of K = lo … hi."""
    lo = (a + m - n).clamp(min=0)
    support = (torch.minimum(a, m) - lo + 1).clamp(max=_SUPPORT)
    order = support.argsort()
    out = torch.zeros(len(Moments._fields), len(n), dtype=torch.float64)
    start = 0
    while start < len(n):
        # Sorted by support, so that each chunk is only as wide as its cells need.
        stop = min(len(n), start + max(1, _CHUNK // _SUPPORT))
        index = order[start:stop]
        chunk = _enumerate_chunk(
            n[index, None], a[index, None], m[index, None], lo[index, None], support[index], correction
        )
        out[:, index] = torch.stack(chunk)
        start = stop
    return Moments(*out)


def _enumerate_chunk(n: Tensor, a: Tensor, m: Tensor, lo: Tensor, support: Tensor, correction: float) -> Moments:
    k = lo + torch.arange(int(support.max()))
    # P(k) / P(k − 1) = (a − k + 1)(m − k + 1) / (k (n − a − m + k))
    before = k[:, 1:] - 1
    odds = (a - before).clamp(min=0) * (m - before).clamp(min=0) / (k[:, 1:] * (n - a - m + k[:, 1:]))
    logits = torch.cat([torch.zeros_like(lo), odds.log().cumsum(1)], dim=1)
    p = logits.softmax(1)
    f = torch.special.xlogy(k, k) - correction * (k > 0)
    mean, mu = (p * f).sum(1), (p * k).sum(1)
    df, dk = f - mean[:, None], k - mu[:, None]
    variance = (p * dk**2).sum(1)
    slope = torch.where(variance > 1e-12, (p * df * dk).sum(1) / variance.clamp(min=1e-12), 0.0)
    residual = (p * (df - slope[:, None] * dk) ** 2).sum(1)
    return Moments(mean, slope, residual.sqrt())


def sum_variance(totals: Tensor, load: Tensor, slope: Tensor, residual_sd: Tensor) -> Tensor:
    """The variance [u] of Σ_sc (slope · K + residual) when the counts are multivariate hypergeometric in each stratum.

    The linear part is exact: m (n − m)/(n − 1) · Var_p(slope), p = a/n. The residuals are nearly quadratic in K, and
    quadratic forms of Gaussians correlate as the square of ρ² = r_c r_c', r = p/(1 − p), the correlation of the counts
    (Isserlis); for equally likely classes that is the variance of χ² with c − 1 degrees of freedom.
    """
    n = totals.sum(-1, keepdim=True)
    p = (totals / n)[:, None]  # [s, 1, c]
    spread = (p * slope**2).sum(-1) - (p * slope).sum(-1) ** 2
    linear = load * (n - load) / (n - 1).clamp(min=1) * spread.clamp(min=0)
    r = p / (1 - p).clamp(min=1e-12)
    common = (r * residual_sd).sum(-1)
    own = ((1 - r**2) * residual_sd**2).sum(-1)
    return (linear + (own + common**2).clamp(min=0)).sum(0)
