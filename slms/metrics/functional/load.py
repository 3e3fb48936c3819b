"""The load of the pathways and the stability of a router's choices. Shapes: n tokens, p pathways."""

from typing import NamedTuple

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

    >>> import torch
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
