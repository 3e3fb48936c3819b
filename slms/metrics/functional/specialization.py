"""The specialization index, which is the adjusted mutual information of a unit and a class.

Shapes: g document groups, s strata, u units (pathways, neurons), c classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional.chance import moments, sum_variance
from slms.metrics.functional.intervals import jackknife
from slms.metrics.functional.score import Score, against_null, layer_null_sd, undefined

_MOST = 2**19  # numbers of the tables that are made at a time; many small calls cost several times as much


def stratified(counts: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    """Counts as float64 [g, s, u, c] and totals as [g, s, c] on the CPU; without strata, s is 1."""
    counts, totals = counts.double().cpu(), totals.double().cpu()
    if counts.dim() == 3:
        counts, totals = counts[:, None], totals[:, None]
    if counts.dim() != 4 or totals.shape != (*counts.shape[:2], counts.shape[3]):
        raise ValueError(
            f"counts {tuple(counts.shape)} and totals {tuple(totals.shape)} must be [g, (s,) u, c] and [g, (s,) c]."
        )
    return counts, totals


def mutual_information(counts: Tensor, totals: Tensor) -> Tensor:
    """Plug-in I(U; C | S) in nats of each binary unit and the class, [..., u], given the stratum.

    Σ_s n_s/n · I_s, with I_s = [Σ_c x(n_uc) + x(n_c − n_uc)] − x(n_u) − x(n − n_u) − Σ_c x(n_c) + x(n), all over n, and
    x(y) = y ln y.

    Args:
        counts: [..., s, u, c], how often the unit is on; totals: [..., s, c].
    """
    n, on = totals.sum(-1), counts.sum(-1)
    joint = (_x(counts) + _x(totals[..., None, :] - counts)).sum(-1)
    of_unit = _x(on) + _x(n[..., None] - on)
    of_class = (_x(totals).sum(-1) - _x(n))[..., None]
    return (joint - of_unit - of_class).sum(-2) / n.sum(-1, keepdim=True)


def event_information(counts: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    """How much the choices of each unit tell about the class: events · KL(p(c|u,s) ‖ p(c|s)), and its upper bound.

    Both are plug-in, in nats, summed over strata, [..., u]. The first, summed over units and divided by all events, is
    I(pathway; C | S) of one choice; the second is events · min(−Σ_c p(c|u,s) ln p(c|s), −ln p(u|s)), as in `purity`.
    """
    n, on = totals.sum(-1)[..., None], counts.sum(-1)
    cross = torch.special.xlogy(on, n) - torch.special.xlogy(counts, totals[..., None, :]).sum(-1)
    bound = torch.minimum(cross, torch.special.xlogy(on, n) - _x(on))
    return (cross + _x(counts).sum(-1) - _x(on)).sum(-2), bound.sum(-2)


def specialization_index(
    counts: Tensor, totals: Tensor, together: Tensor | None = None, n_together: int | None = None
) -> Score:
    """(I(U; C) − E_perm) / (H(C) − E_perm): 0 in expectation for random units, 1 if the unit tells the class.

    It is adjusted for chance like the adjusted mutual information (Vinh et al. 2010), with the exact permutation mean.
    `units` treats each unit as on or off, so it is at most H(U)/H(C) ≤ ln 2 / H(C). `value` is the layer's, from
    I(pathway; C) of one choice, which is the load-weighted mean of KL(p(c|p) ‖ p(c)). A layer scores 1 if every pathway
    serves one class, and `ceiling` if the class decides its choices.

    With strata it is conditional, I(U; C | S) over H(C | S), with labels permuted within each stratum. If the strata
    are token ids, it asks what a unit knows about the class beyond the token itself.

    Args:
        counts: [g, u, c] or [g, s, u, c]; totals: [g, c] or [g, s, c]; `joint_counts` makes them, with
            groups = group · n_strata + stratum for the latter.
        together: [u, u], from `joint_choices`, for the layer's null. All is NaN with fewer than two classes.
        n_together: number of tokens behind `together`, if it was counted on other tokens than `totals`.
    """
    counts, totals = stratified(counts, totals)
    n, on = int(totals.sum()), counts.sum((0, 1, 3))
    # A stratum of a single class tells nothing and has no entropy; leaving it out changes no sum and is faster.
    ambiguous = (totals.sum(0) > 0).sum(-1) > 1
    if not ambiguous.any():
        return undefined(n, len(on))
    seen, some = totals[:, ambiguous].sum((0, 1)) > 0, totals[:, ambiguous].sum((1, 2)) > 0
    counts, totals = counts[some][:, ambiguous][..., seen], totals[some][:, ambiguous][..., seen]
    everything, every = counts.sum(0), totals.sum(0)
    events = everything.sum()

    load = everything.sum(-1)  # [s, u]
    null = _chance(every, load)
    of_classes = class_entropy(every)
    units = (mutual_information(everything, every) - null.unit_mean) / (of_classes - null.unit_mean)

    information, bound = (part.sum() / events for part in event_information(everything, every))
    layer_chance = null.event_mean.sum() / events
    value = float((information - layer_chance) / (of_classes - layer_chance))
    without = information_left_out(counts, totals)
    half = float(jackknife(without))
    null_sd = layer_null_sd(torch.ones_like(on), null.event_sd, together, n_together or n)
    null_sd /= float(events * (of_classes - layer_chance))
    return Score(
        **against_null(value, half, float(layer_chance / of_classes), null_sd),
        ceiling=float(bound / of_classes),
        n=n,
        units=torch.where(on > 0, units, torch.nan),
        units_z=torch.where(on > 0, units * (of_classes - null.unit_mean) / null.unit_sd, torch.nan),
        left_out=without,
    )


class _Chance(NamedTuple):
    """Mean and standard deviation [u] under shuffled classes, in nats."""

    unit_mean: Tensor
    """mean of `mutual_information`"""
    unit_sd: Tensor
    event_mean: Tensor
    """mean of `event_information`"""
    event_sd: Tensor


def _chance(totals: Tensor, load: Tensor) -> _Chance:
    """The null for class totals [s, c] and loads [s, u]; the counts of a unit's off side are those of load n − m."""
    n = totals.sum(-1, keepdim=True)
    on, off = moments(totals, load), moments(totals, n - load)
    fixed = _x(load) + _x(n - load) + _x(totals).sum(-1, keepdim=True) - _x(n)
    unit_mean = ((on.mean + off.mean).sum(-1) - fixed).sum(0) / n.sum()
    unit_variance = sum_variance(totals, load, on.slope - off.slope, on.residual_sd + off.residual_sd)
    log_p = torch.where(totals > 0, totals / n, 1.0).log()[:, None]
    linear = load * _x(totals / n).sum(-1, keepdim=True)
    event_mean = (on.mean.sum(-1) - linear - _x(load)).sum(0)
    event_variance = sum_variance(totals, load, on.slope - log_p, on.residual_sd)
    return _Chance(unit_mean, unit_variance.sqrt() / n.sum(), event_mean, event_variance.sqrt())


def _x(y: Tensor) -> Tensor:
    return torch.special.xlogy(y, y)


def layer_information(counts: Tensor, totals: Tensor) -> Tensor:
    """I(pathway; C | S) / H(C | S), not adjusted for chance, [...], of counts [..., s, u, c] and totals [..., s, c]."""
    return event_information(counts, totals)[0].sum(-1) / counts.sum((-3, -2, -1)) / class_entropy(totals)


def information_left_out(counts: Tensor, totals: Tensor) -> Tensor:
    """`layer_information` [g] without each document group, of counts [g, s, u, c] and totals [g, s, c]."""
    everything, every = counts.sum(0), totals.sum(0)
    parts = zip(in_parts(counts, everything.numel()), in_parts(totals, everything.numel()), strict=True)
    return torch.cat([layer_information(everything - part, every - total) for part, total in parts])


def in_parts(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split x [q, ...] along q, so that tables of `size` numbers each are made a few megabytes at a time."""
    return x.split(max(1, _MOST // max(1, size)))


def class_entropy(totals: Tensor) -> Tensor:
    """H(C | S) in nats, plug-in, [...], of totals [..., s, c]."""
    n = totals.sum(-1)
    return (_x(n) - _x(totals).sum(-1)).sum(-1) / n.sum(-1)
