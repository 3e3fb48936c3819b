"""Rules and gates, which turn router scores into the chosen pathways and the factor on each one's output.

Shapes: n tokens, p pathways.

A rule decides *which* pathways run, from scores plus a selection bias. A gate decides *how much* each counts, from the
scores alone. The first ``n_shared`` pathways always run, with gate 1, and do not compete.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from slms.kernels.router import top_k


class Routes(NamedTuple):
    """One layer's routing of n tokens, all [n, p]."""

    scores: Tensor
    """Router outputs, fp32, of about unit variance after calibration."""
    probs: Tensor
    """Softmax of the scores over routed pathways, fp32; 0 at shared ones."""
    chosen: Tensor
    """bool, True where the token executes the pathway."""
    gates: Tensor
    """Factor on the pathway's output, fp32; exactly 0 where not chosen."""
    through: Tensor | None = None
    """int [n], neurons that go through W_out, where a second choice leaves fewer than run"""


def top_p(probs: Tensor, p: float) -> Tensor:
    """Choose the smallest non-empty set that holds at least the share p of each row's sum; the leftmost of ties win.

    >>> top_p(torch.tensor([[0.1, 0.5, 0.4]]), 0.6)
    tensor([[False,  True,  True]])
    """
    ordered, index = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    keep = before < p * ordered.sum(-1, keepdim=True)
    keep = keep & (ordered > 0)  # at p = 1 rounding would otherwise admit pathways of probability 0
    return torch.zeros_like(keep).scatter(-1, index, keep)


def threshold(norms: Tensor, tau: float) -> Tensor:
    """Choose pathways whose predicted norm is at least (1 − tau) of the row's largest (D2DMoE, arXiv:2310.04361, §3.4).

    A norm is never negative, so a negative prediction counts as 0. If no prediction is positive, only the largest is
    kept, the leftmost of equals. tau = 0 keeps the largest; tau = 1 keeps every pathway.

    >>> threshold(torch.tensor([[2.0, 1.0, 0.9], [-2.0, -1.0, -3.0]]), 0.5)
    tensor([[ True,  True, False],
            [False,  True, False]])
    """
    if tau == 1.0:
        return torch.ones_like(norms, dtype=torch.bool)
    largest = norms.amax(-1, keepdim=True)
    return torch.where(largest > 0, norms >= (1.0 - tau) * largest, top_k(norms, 1))


def centred(scores: Tensor) -> Tensor:
    """Subtract from each row the mean of its finite scores; what is −∞ stays so.

    >>> centred(torch.tensor([[-math.inf, 4.0, 2.0]]))
    tensor([[-inf,  1., -1.]])
    """
    finite = scores > -math.inf
    total = scores.masked_fill(~finite, 0.0).sum(-1, keepdim=True)
    return scores - total / finite.sum(-1, keepdim=True).clamp_min(1)


def at_least(scores: Tensor, least: float | Tensor) -> Tensor:
    """Choose scores of at least `least`; a row without any keeps its largest, the leftmost of equals.

    >>> at_least(torch.tensor([[2.0, 1.0, 0.5], [0.1, 0.3, 0.3]]), 1.0)
    tensor([[ True,  True, False],
            [False,  True, False]])
    """
    above = scores >= least
    return above | (top_k(scores, 1) & ~above.any(-1, keepdim=True))


Allow = Callable[[Tensor], Tensor]
"""Maps router probabilities [n, p] to the pathways that tokens may choose, bool [n, p]."""


class Options(NamedTuple):
    """The numbers, beside the scores, that rules choose by."""

    k: int
    """Routed pathways of a token, not counting shared ones."""
    top_p: float
    tau: float
    norm_shift: float | Tensor
    norm_scale: float | Tensor
    """``norm_shift + norm_scale · scores`` are the predicted norms of the pathways' outputs."""
    least: float | Tensor = -math.inf
    """The least centred score that the rule ``controlled`` chooses; :mod:`slms.routing.budget` moves it."""


class Rule(NamedTuple):
    """A rule, with what callers need in order to count its choices, describe it or vary it."""

    choose: Callable[[Tensor, Options], Tensor]
    """Maps scores [n, p], −∞ at shared pathways, to a bool mask [n, p]."""
    dial: str
    """The option of the routing configuration that chooses more pathways as it rises."""
    fixed: bool
    """Whether every token gets exactly as many pathways as the dial says."""
    words: str
    """A description of the chosen pathways: a format string over the routing configuration's fields."""
    held: Literal["threshold", "penalty"] | None = None
    """What holds the mean number of a token's pathways to k, in calibration and training; None if nothing does."""


RULES = {
    "top_k": Rule(lambda scores, o: top_k(scores, o.k), dial="k", fixed=True, words="the best {k}"),
    "top_p": Rule(
        lambda scores, o: top_p(scores.softmax(-1), o.top_p),
        dial="top_p",
        fixed=False,
        words="the fewest with a share of {top_p:g}",
    ),
    "threshold": Rule(
        lambda scores, o: threshold(o.norm_shift + o.norm_scale * scores, o.tau),
        dial="tau",
        fixed=False,
        words="those within {tau:g} of the best",
    ),
    "controlled": Rule(
        lambda scores, o: at_least(centred(scores), o.least),
        dial="k",
        fixed=False,
        words="on average {k}, those above a threshold,",
        held="threshold",
    ),
    "relu": Rule(
        lambda scores, o: scores > 0,
        dial="k",
        fixed=False,
        words="on average {k}, those with positive scores,",
        held="penalty",
    ),
}


def unit(scores: Tensor, probs: Tensor, chosen: Tensor, modulation: Tensor | None) -> Tensor:
    """g = 1 + p − sg(p). Its value is 1; the router learns by a straight-through estimate (arXiv:1308.3432)."""
    return 1.0 + (probs - probs.detach())  # in this order it is exactly 1


def softmax(scores: Tensor, probs: Tensor, chosen: Tensor, modulation: Tensor | None) -> Tensor:
    """g = w. A token's gates sum to |C|. It equals the dense model at k = P only if all scores are equal."""
    return _share(probs, chosen)


def sigmoid(scores: Tensor, probs: Tensor, chosen: Tensor, modulation: Tensor | None) -> Tensor:
    """g = σ(s), as in Llama-4 and in DeepSeek-V3 before it renormalises. It never equals the dense model."""
    return scores.sigmoid()


def graded(scores: Tensor, probs: Tensor, chosen: Tensor, modulation: Tensor | None) -> Tensor:
    """g = 2σ(Δ), where Δ [n, p] is a second head of the router that starts at 0; the score is s = s_norm + Δ.

    The gate starts at exactly 1 with slope ½, so loss gradients reach the choice through the gate itself, without a
    straight-through estimate.
    """
    assert modulation is not None
    return 2.0 * modulation.sigmoid()


def blend(scores: Tensor, probs: Tensor, chosen: Tensor, modulation: Tensor | None) -> Tensor:
    """g = 1 + λ(sg(w) − 1) + w − sg(w), where λ is a learned scalar that starts at 0.

    Its value moves from ``unit`` to ``softmax`` with λ; its gradient in s is that of ``softmax`` from the start.
    """
    share = _share(probs, chosen)
    fixed = share.detach()
    assert modulation is not None
    return 1.0 + modulation * (fixed - 1.0) + (share - fixed)


def ramp(scores: Tensor, probs: Tensor, chosen: Tensor, modulation: Tensor | None) -> Tensor:
    """g = 1 + λ(σ(s) − 1) + (1 − λ)(p − sg(p)); training raises λ from 0 to 1, so g goes from unit to sigmoid."""
    assert modulation is not None
    return 1.0 + modulation * (scores.sigmoid() - 1.0) + (1.0 - modulation) * (probs - probs.detach())


def relu(scores: Tensor, probs: Tensor, chosen: Tensor, modulation: Tensor | None) -> Tensor:
    """g = 1 + λ(r − 1) + (1 − λ)(r − sg(r)) with r = relu(s), the gate of ReMoE (arXiv:2412.14711).

    Its value goes from 1 to r as training raises λ from 0 to 1; its gradient in s is that of r from the start.
    """
    assert modulation is not None
    r = scores.relu()
    return 1.0 + modulation * (r - 1.0) + (1.0 - modulation) * (r - r.detach())


GATES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    gate.__name__: gate for gate in (unit, softmax, sigmoid, graded, blend, ramp, relu)
}
"""Factors [n, p] on the outputs of chosen routed pathways; entries that are not chosen are meaningless.

Of scores s and p = probs, both [n, p], with C = the chosen set, w_i = |C|·p_i / Σ_{j∈C} p_j (so Σ_C w = |C|) and sg =
stop-gradient; the last four gates also take their Δ or λ.
"""


def _share(probs: Tensor, chosen: Tensor) -> Tensor:
    """Return the probabilities of the chosen pathways, scaled to a sum of |C|."""
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
    least: float | Tensor = -math.inf,
    modulation: Tensor | None = None,
    allow: Allow | None = None,
) -> Routes:
    """Apply a rule and a gate to scores [n, p].

    bias [p] is added to the scores only for the choice, so balancing by bias does not change gates or probabilities
    (arXiv:2408.15664). k includes shared pathways. Under ``controlled``, k = P chooses every pathway.
    allow: what is not allowed does not compete; probabilities do not know of it.
    """
    assert scores.dtype in (torch.float32, torch.float64), scores.dtype
    for name, value, known in (("rule", rule, RULES), ("gate", gate, GATES)):
        if value not in known:
            raise ValueError(f"`routing.{name}` is {value!r}; it must be one of {', '.join(known)}.")
    shared = torch.arange(scores.shape[-1], device=scores.device) < n_shared
    probs = scores.masked_fill(shared, -math.inf).softmax(-1)
    ranked = scores if bias is None else scores + bias
    ranked = ranked.detach().masked_fill(shared, -math.inf)
    allowed = None if allow is None else allow(probs)
    if allowed is not None:
        ranked = ranked.masked_fill(~allowed, -math.inf)
    least = least if k < scores.shape[-1] else -math.inf
    options = Options(k - n_shared, top_p_share, tau, norm_shift, norm_scale, least)
    chosen = RULES[rule].choose(ranked, options)
    return gated(scores, probs, chosen if allowed is None else chosen & allowed, gate, n_shared, modulation)


def gated(
    scores: Tensor, probs: Tensor, chosen: Tensor, gate: str, n_shared: int = 0, modulation: Tensor | None = None
) -> Routes:
    """Give a choice [n, p] its gates; the shared pathways join it, with gate 1."""
    shared = torch.arange(scores.shape[-1], device=scores.device) < n_shared
    chosen = chosen & ~shared
    gates = torch.where(chosen, GATES[gate](scores, probs, chosen, modulation), 0.0)
    if n_shared:
        chosen, gates = chosen | shared, torch.where(shared, 1.0, gates)
    return Routes(scores, probs, chosen, gates)
