"""Purity, which is how much of the uncertainty about a token's class the chosen pathway removes.

Shapes: g document groups, u pathways, c classes (token ids or labels).
"""

import torch
from torch import Tensor

from slms.metrics.functional.chance import moments, sum_variance
from slms.metrics.functional.entropy import entropy
from slms.metrics.functional.intervals import jackknife
from slms.metrics.functional.score import Score, against_null, layer_null_sd, undefined

# A pathway chosen less often says nothing about its classes; the threshold of the prototype, kept for both purities.
MIN_EVENTS = 10


def purity_legacy(counts: Tensor) -> Tensor:
    """Purity by the formula of *LLM Layer-wise Routing*: 1 − H(t|p) / ln(distinct classes of p), [u].

    Kept to compare with that prototype (`llm-routing.py`). Plug-in entropy; NaN below 10 events. It grows with the
    number of tokens (a *random* router over Zipf tokens scores .015 at 20 tokens, .13 at 1k, .26 at 50k) and calls a
    pathway with a single class pure: hence `purity`.

    Args:
        counts: [g, u, c] or [u, c].
    """
    counts = counts.double().reshape(-1, *counts.shape[-2:]).sum(0)
    largest = (counts > 0).sum(-1).double().log()
    value = torch.where(largest > 0, 1 - entropy(counts, "plug_in") / largest, 1.0)
    return torch.where(counts.sum(-1) >= MIN_EVENTS, value, torch.nan)


def purity(counts: Tensor, totals: Tensor, together: Tensor | None = None) -> Score:
    """KL(p(t|pathway) ‖ p(t)) / H(t), adjusted for chance by random pathways with as many events.

    With the cross entropy H×_p = −Σ_t p(t|p) ln p(t), whose load-weighted mean is H(t), and s_p the share of tokens
    that choose p,

        KL_p    = H×_p − H(t|p)
        B_p     = min(H×_p, −ln s_p)                            the most KL_p can be
        a_p     = (KL_p − E KL_p) / max(B_p − E KL_p, B_p / 2)  E over permuted tokens, hence over equal n
        purity  = a_p B_p / H×_p;  of the layer: Σ_p load_p a_p B_p / Σ_p load_p H×_p
        ceiling = Σ_p load_p B_p / Σ_p load_p H×_p

    KL_p reaches H×_p if the pathway holds only one class, and −ln s_p if the class alone decides whether it is chosen.
    So purity is 0 in expectation for random choices at any number of tokens, 1 if every pathway holds one class, and
    `ceiling` if the class decides every choice (for 4 of 16 pathways and 5.6 nats of tokens, ln 4 / 5.6 = .25).
    Value / ceiling is the share of the router's choice that the class explains.

    Interpolating between the two exact ends makes the value nearly independent of n. Entropies rarefied to equal n,
    minus their permutation mean, depend on it: a specialised pathway has fewer classes, hence less bias, than a random
    one. A planted router, 4 of 16, that follows the token's group with probability q (Zipf tokens, one sample each):

        =========  =====  =====  ========  ===================  ===============  =====================
        tokens, q  truth      n  as here   the same, Chao–Shen  the same, plug-in  rarefied, Chao–Shen
        =========  =====  =====  ========  ===================  ===============  =====================
        2048, .6   .0647     1k  .0679     .0518                .0853            .0530
        2048, .6   .0647    10k  .0653     .0583                .0700            .0546
        2048, .6   .0647   100k  .0651     .0632                .0662            .0663
        2048, 1    .2046    10k  .1955     .1792                .2094            .1611
        50k, .3    .0143     1k  .0143     .0096                .0211            .0131
        50k, .3    .0143    10k  .0138     .0102                .0170            .0104
        50k, .6    .0536    10k  .0525     .0394                .0650            .0347
        =========  =====  =====  ========  ===================  ===============  =====================

    Args:
        counts: [g, u, c] and totals: [g, c], from `joint_counts`; together: [u, u], from `joint_choices`. Pathways with
            fewer than 10 events are NaN and left out of the layer; all is NaN if none has 10, or with one class only.
    """
    counts, totals = counts.double().cpu(), totals.double().cpu()
    if counts.dim() != 3 or totals.shape != (counts.shape[0], counts.shape[2]):
        raise ValueError(f"counts {tuple(counts.shape)} and totals {tuple(totals.shape)} must be [g, u, c] and [g, c].")
    seen, some = totals.sum(0) > 0, totals.sum(1) > 0
    counts, totals = counts[some][:, :, seen], totals[some][:, seen]
    everything, every = counts.sum(0), totals.sum(0)
    events, n = everything.sum(-1), int(every.sum())
    used = events >= MIN_EVENTS
    if not used.any() or len(every) < 2:
        return undefined(n, len(used))
    counts, everything, events = counts[:, used], everything[used], events[used]

    load = events / events.sum()
    kl, cross = _divergence(everything, every)
    bound = torch.minimum(cross, -(events / n).log())
    chance, sd = _chance(every, events)
    # A few events that are all of one frequent class are bounded below what random ones score on average. The 1e-9 is
    # for a pathway chosen at every token: kl = chance, bound 0, purity 0.
    scale = bound / torch.maximum(bound - chance, bound / 2).clamp(min=1e-9)
    layer_cross = float((load * cross).sum())
    value = float((load * (kl - chance) * scale).sum()) / layer_cross

    left_out = []
    for group in range(len(totals)):
        table = everything - counts[group]
        rest_kl, rest_cross = _divergence(table, every - totals[group])
        weight = table.sum(-1) / table.sum()
        left_out.append((weight * (rest_kl - chance) * scale).nansum() / (weight * rest_cross).nansum())
    without = torch.stack(left_out)
    half = float(jackknife(without))

    null_sd = layer_null_sd(load, scale * sd, None if together is None else together[used][:, used], n) / layer_cross
    blank = torch.full([len(used)], torch.nan, dtype=torch.float64)
    return Score(
        **against_null(value, half, float((load * chance).sum()) / layer_cross, null_sd),
        ceiling=float((load * bound).sum()) / layer_cross,
        n=n,
        units=blank.masked_scatter(used, (kl - chance) * scale / cross),
        units_z=blank.masked_scatter(used, (kl - chance) / sd),
        left_out=without,
    )


def _divergence(counts: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p̂ ‖ p) = H×(p̂, p) − Ĥ(p̂) and H×(p̂, p) in nats, of counts [u, c] among totals [c]."""
    p = totals / totals.sum()
    surprise = torch.where(p > 0, -p.log(), 0.0)
    cross = torch.einsum("uc,c->u", counts, surprise) / counts.sum(-1)
    return cross - entropy(counts, "miller_madow"), cross


def _chance(totals: Tensor, events: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [u] of the Miller–Madow KL of a random pathway with equally many events.

    events · KL = Σ_c (K ln K − ½ [K > 0]) − Σ_c K ln p_c + ½ − events · ln events.
    """
    p = totals / totals.sum()
    of_counts = moments(totals[None], events[None], correction=0.5)
    linear = events * entropy(totals, "plug_in")  # −Σ E K ln p_c
    mean = of_counts.mean.sum((0, 2)) + linear + 0.5 - events * events.log()
    variance = sum_variance(totals[None], events[None], of_counts.slope - p.log(), of_counts.residual_sd)
    return mean / events, variance.sqrt() / events
