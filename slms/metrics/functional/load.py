"""The load of the pathways, the stability of choices, and what they capture. Shapes: n tokens, p pathways."""

from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional.entropy import entropy


class Utilization(NamedTuple):
    share_used: float
    """share of all P pathways whose load exceeds 0.1/P"""
    effective: float
    """exp H(load) / P: 1 if all loads are equal, 1/P if one pathway takes all"""
    max_violation: float
    """largest load / mean load − 1; 0 if balanced"""
    load_entropy: float
    """H(load) in nats"""
    load: Tensor
    """[p], each pathway's share of all choices; sums to 1"""


def utilization(choices: Tensor) -> Utilization:
    """How evenly *all* P pathways are used, from the number of times [p] that each was chosen.

    >>> used = utilization(torch.tensor([50, 50, 0, 0]))
    >>> used.share_used, used.effective, used.max_violation
    (0.5, 0.5, 1.0)
    """
    choices = choices.double()
    if choices.dim() != 1 or not choices.sum() > 0:
        raise ValueError(f"choices is {tuple(choices.shape)}, sum {float(choices.sum())}; it must be [p], not all 0.")
    load = choices / choices.sum()
    n_pathways = len(load)
    load_entropy = entropy(choices, "plug_in")
    return Utilization(
        share_used=float((load > 0.1 / n_pathways).double().mean()),
        effective=round(float(load_entropy.exp() / n_pathways), 12),
        max_violation=float(load.max() * n_pathways - 1),
        load_entropy=float(load_entropy),
        load=load,
    )


def router_saturation(chosen: Tensor, final: Tensor) -> Tensor:
    """The share of the final choices already made: the mean over tokens of |E_t ∩ E_T| / |E_T| (OLMoE, 2409.02060).

    Args:
        chosen: bool [n, p], an earlier checkpoint's choices.
        final: bool [n, p], the final checkpoint's choices on the same tokens.
    """
    if chosen.shape != final.shape:
        raise ValueError(
            f"chosen is {tuple(chosen.shape)}, final {tuple(final.shape)}; they must be of the same tokens."
        )
    size = final.sum(-1)
    overlap = (chosen & final).sum(-1)
    return (overlap[size > 0] / size[size > 0]).double().mean()


def captured_share(norms: Tensor, chosen: Tensor) -> Tensor:
    """The share of the best choice's output norm that each token's choice captures, [n].

    Σ_{p chosen} ‖o_p‖ over the largest sum that equally many pathways can have; 1 for the oracle's own choice. NaN for
    a token that chooses nothing, or at which every norm is 0.

    Args:
        norms: [n, p], at least 0; chosen: bool [n, p].

    >>> captured_share(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[True, False, True]]))
    tensor([0.8000])
    """
    size = chosen.sum(1, keepdim=True)
    best = norms.sort(dim=1, descending=True).values.cumsum(1).gather(1, (size - 1).clamp(min=0))[:, 0]
    captured = (norms * chosen).sum(1)
    return torch.where((size[:, 0] > 0) & (best > 0), captured / best, torch.nan)


def largest(norms: Tensor, chosen: Tensor, n_shared: int = 0) -> Tensor:
    """The oracle's choice: the pathways of largest norm, as many for each token as `chosen` has; bool [n, p].

    The first `n_shared` pathways are always chosen and do not compete.
    """
    size = chosen[:, n_shared:].sum(1, keepdim=True)
    order = norms[:, n_shared:].argsort(dim=1, descending=True)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return torch.cat([torch.ones_like(chosen[:, :n_shared]), ranks < size], 1)
