"""The measures of OLMoE (Muennighoff et al. 2024, arXiv:2409.02060, §5): vocabulary and domain specialization, and
co-activation of experts. Router saturation is in `load`.

Each is a matrix by definition; a layer's number is a mean over it, with its interval over document groups. k, the
number of experts of a token that count, is all that it executes.

Shapes: g document groups, p pathways, x token ids, c domains.
"""

import torch
from torch import Tensor

from slms.metrics.functional.score import Score, measured, undefined

FEWEST = 10  # occurrences of a token id; OLMoE's lists need as many


def use_share(counts: Tensor, totals: Tensor) -> Tensor:
    """N_{E,x} / N_x: the share of the tokens of a kind that choose a pathway, [..., p, x]; NaN where there are none.

    It is OLMoE's vocabulary specialization if the kinds are token ids, and its domain specialization if they are
    domains.

    Args:
        counts: [..., p, x], tokens of a kind that choose a pathway; totals: [..., x], tokens of the kind.
    """
    return counts.double() / torch.where(totals > 0, totals.double(), torch.nan)[..., None, :]


def vocabulary_specialization(counts: Tensor, totals: Tensor) -> Score:
    """The mean over token ids of the largest share of an id's tokens that one pathway gets, max_E N_{E,x} / N_x.

    Every id that occurs ten times weighs alike, as in OLMoE's script. It is k/P at least, and 1 if every id has a
    pathway that all its tokens choose.

    Args:
        counts: [g, p, x]; totals: [g, x].
    """
    often = totals.sum(0) >= FEWEST
    counts, totals = counts[..., often], totals[:, often]

    def layer(counts: Tensor, totals: Tensor) -> Tensor:
        return use_share(counts, totals).amax(-2).nanmean(-1)

    return _over_groups(layer, counts, totals, int(totals.sum()))


def domain_specialization(counts: Tensor, totals: Tensor) -> Score:
    """The mean over pathways and domains of |N_{E,D} / N_D − N_E / N|, how far domains depart from a pathway's load.

    Args:
        counts: [g, p, c]; totals: [g, c].
    """

    def layer(counts: Tensor, totals: Tensor) -> Tensor:
        load = counts.double().sum(-1, keepdim=True) / totals.double().sum(-1)[..., None, None]
        return (use_share(counts, totals) - load).abs().flatten(-2).nanmean(-1)

    return _over_groups(layer, counts, totals, int(totals.sum()))


def coactivation_share(together: Tensor) -> Score:
    """The mean over pathways of their largest co-activation, max_j N_ij / N_i, j ≠ i.

    N_ij counts the tokens that choose both pathways, N_i those that choose i. It is (k − 1)/(P − 1) at least if all
    loads are equal, and 1 if every pathway has a companion.

    Args:
        together: [g, p, p], N_ij; its diagonal is N_i.
    """

    def layer(together: Tensor, _: Tensor) -> Tensor:
        uses = together.diagonal(dim1=-2, dim2=-1).double()
        share = together.double() / torch.where(uses > 0, uses, torch.nan)[..., None]
        others = ~torch.eye(share.shape[-1], dtype=torch.bool, device=share.device)
        return torch.where(others, share, 0.0).amax(-1).nanmean(-1)

    uses = together.diagonal(dim1=-2, dim2=-1)
    return _over_groups(layer, together, uses, int(uses.sum()))


def _over_groups(layer, counts: Tensor, totals: Tensor, n: int) -> Score:
    """The score of layer(counts, totals), whose arguments are sums over document groups."""
    counts, totals = counts.cpu(), totals.cpu()
    some = totals.sum(-1) > 0
    counts, totals = counts[some], totals[some]
    if not n or not totals.numel():
        return undefined(0, 0)
    value = float(layer(counts.sum(0), totals.sum(0)))
    return measured(value, layer(counts.sum(0) - counts, totals.sum(0) - totals), n)
