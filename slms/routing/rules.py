"""Rules and gates: router scores → chosen pathways and the factor on each one's output.

Shapes: n tokens, p pathways.

A rule decides *which* pathways run, from scores plus a selection bias; a gate decides *how much* each counts, from
the scores alone. The first ``n_shared`` pathways always run, with gate 1, outside the competition.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Routes(NamedTuple):
    """One layer's routing of n tokens, all [n, p]."""

    scores: Tensor
    """Router outputs, fp32, about unit variance when calibrated."""
    probs: Tensor
    """Softmax of the scores over routed pathways, fp32; 0 at shared ones."""
    chosen: Tensor
    """bool: executed."""
    gates: Tensor
    """Factor on the pathway's output, fp32; exactly 0 where not chosen."""


def top_k(scores: Tensor, k: int) -> Tensor:
    """The k largest scores of each row as a bool mask; equal scores are taken from the left.

    >>> top_k(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2)
    tensor([[False,  True,  True, False]])
    """
    # torch.topk leaves the order of ties open, its k-th *value* is not: rebuild the set from the value.
    kth = scores.topk(k, dim=-1).values[..., -1:]
    above, ties = scores > kth, scores == kth
    return above | (ties & (ties.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


def top_p(probs: Tensor, p: float) -> Tensor:
    """The smallest set whose cumulative share of each row's sum is at least p, never empty; ties from the left.

    >>> top_p(torch.tensor([[0.1, 0.5, 0.4]]), 0.6)
    tensor([[False,  True,  True]])
    """
    ordered, index = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    keep = before < p * ordered.sum(-1, keepdim=True)
    keep = keep & (ordered > 0)  # at p = 1 rounding would otherwise admit pathways of probability 0
    return torch.zeros_like(keep).scatter(-1, index, keep)


def threshold(norms: Tensor, tau: float) -> Tensor:
    """Pathways whose predicted norm is at least (1 − tau) times the row's largest (D2DMoE, arXiv:2310.04361, §3.4).

    A norm is never negative, so negative predictions count as 0; where no prediction is positive only the largest is
    kept, the leftmost of equals. tau = 0 keeps the largest, tau = 1 every pathway.

    >>> threshold(torch.tensor([[2.0, 1.0, 0.9], [-2.0, -1.0, -3.0]]), 0.5)
    tensor([[ True,  True, False],
            [False,  True, False]])
    """
    if tau == 1.0:
        return torch.ones_like(norms, dtype=torch.bool)
    largest = norms.amax(-1, keepdim=True)
    return torch.where(largest > 0, norms >= (1.0 - tau) * largest, top_k(norms, 1))


def gate_values(kind: str, scores: Tensor, probs: Tensor, chosen: Tensor, modulation: Tensor | None = None) -> Tensor:
    """Factors [n, p] on the outputs of chosen routed pathways; entries that are not chosen are meaningless.

    With p = probs, C = the chosen set, w_i = |C|·p_i / Σ_{j∈C} p_j (so Σ_C w = |C|) and sg = stop-gradient:

    ``unit``      g = 1 + p − sg(p). Value 1; the router learns straight through (arXiv:1308.3432).
    ``softmax``   g = w. Gates of a token sum to |C|. Equals the dense model at k = P only where scores are equal.
    ``sigmoid``   g = σ(s) (Llama-4, DeepSeek-V3 before renormalising). Never equal to the dense model.
    ``graded``    g = 2σ(Δ), Δ = ``modulation`` [n, p], a second head of the router that starts at 0 and is also part
                  of the score s = s_norm + Δ. Starts at exactly 1 with slope ½: loss gradients reach the choice
                  through the gate itself, no straight-through estimate needed.
    ``blend``     g = 1 + λ(sg(w) − 1) + w − sg(w): λ = ``modulation`` is a learned scalar that starts at 0; the value
                  moves from ``unit`` to ``softmax`` with λ, the gradient of s is that of ``softmax`` from the start.
    ``ramp``      g = 1 + λ(σ(s) − 1) + (1 − λ)(p − sg(p)): λ = ``modulation`` (scalar) is 0 at conversion and raised to
                  1 by training, so it starts as ``unit`` and ends as ``sigmoid``.
    """
    if kind == "unit":
        return 1.0 + (probs - probs.detach())  # in this order it is exactly 1
    if kind == "sigmoid":
        return scores.sigmoid()
    if kind == "softmax":
        return _share(probs, chosen)
    if kind not in ("graded", "blend", "ramp"):
        raise ValueError(f"`routing.gate` is {kind!r}; it must be one of unit, softmax, sigmoid, graded, blend, ramp.")
    assert modulation is not None, kind
    if kind == "graded":
        return 2.0 * modulation.sigmoid()
    if kind == "ramp":
        return 1.0 + modulation * (scores.sigmoid() - 1.0) + (1.0 - modulation) * (probs - probs.detach())
    share = _share(probs, chosen)
    fixed = share.detach()
    return 1.0 + modulation * (fixed - 1.0) + (share - fixed)


def _share(probs: Tensor, chosen: Tensor) -> Tensor:
    """Probabilities of the chosen scaled to a sum of |C|."""
    kept = probs * chosen
    return kept * chosen.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(torch.finfo(probs.dtype).tiny)


def select(
    scores: Tensor,
    *,
    rule: str = "top_k",
    k: int = 1,
    top_p_share: float = 0.5,
    tau: float = 0.5,
    gate: str = "unit",
    n_shared: int = 0,
    bias: Tensor | None = None,
    norm_shift: float | Tensor = 0.0,
    norm_scale: float | Tensor = 1.0,
    modulation: Tensor | None = None,
) -> Routes:
    """Apply a rule and a gate to scores [n, p].

    bias [p] is added to the scores for the choice only, so balancing by bias leaves gates and probabilities alone
    (arXiv:2408.15664). ``norm_shift + norm_scale · scores`` are the predicted norms that ``threshold`` compares.
    """
    assert scores.dtype in (torch.float32, torch.float64), scores.dtype
    shared = torch.arange(scores.shape[-1], device=scores.device) < n_shared
    probs = scores.masked_fill(shared, -math.inf).softmax(-1)
    ranked = scores if bias is None else scores + bias
    ranked = ranked.detach().masked_fill(shared, -math.inf)
    if rule == "top_k":
        chosen = top_k(ranked, k - n_shared)
    elif rule == "top_p":
        chosen = top_p(ranked.softmax(-1), top_p_share)
    elif rule == "threshold":
        chosen = threshold(norm_shift + norm_scale * ranked, tau)
    else:
        raise ValueError(f"`routing.rule` is {rule!r}; it must be one of top_k, top_p, threshold.")
    chosen = chosen & ~shared
    gates = torch.where(chosen, gate_values(gate, scores, probs, chosen, modulation), 0.0)
    if n_shared:
        chosen, gates = chosen | shared, torch.where(shared, 1.0, gates)
    return Routes(scores, probs, chosen, gates)
