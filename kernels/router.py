"""A router in the form that the compiled call of `kernels.cpu.fused` takes, and its function in plain PyTorch.

Shapes: n tokens, d model, h router's hidden units, p pathways.
"""

import importlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, library

from slms.kernels.backends import refusal

UNIT, SIGMOID, SOFTMAX = range(3)
GATES = {"unit": UNIT, "sigmoid": SIGMOID, "softmax": SOFTMAX, "ramp": SIGMOID, "blend": SOFTMAX}
"""The known gates, and the value that each has or tends to."""


class Router(NamedTuple):
    """s = W_out relu(W_in x + b_in) + b_out, or W_out x + b_out; the k largest of s + bias are chosen.

    The first `n_shared` pathways count towards k, are always chosen, and have gate 1.
    """

    W_in: Tensor | None
    """[h, d], or None if the scores are linear in x"""
    b_in: Tensor | None
    W_out: Tensor
    """[p, h] or [p, d]"""
    b_out: Tensor
    bias: Tensor
    """[p], used only for the choice"""
    k: int
    gate: str
    """unit: 1; sigmoid: v = σ(s); softmax: v = k · softmax of s over the chosen, both without the shared ones; ramp and
    blend: 1 + λ (v − 1)"""
    ramp: Tensor | None
    """λ, for the gates that have one"""
    n_shared: int = 0


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """The k-th largest of each row of scores [..., p], as [..., 1]; NaN is larger than any, and gives infinity.

    `torch.topk` leaves the order of ties open, but not this value, from which a set can be rebuilt. Unsorted it takes a
    third of the time: 6 instead of 17 ms for 256 tokens and half of 1,536 pathways.
    """
    largest = scores.topk(k, dim=-1, sorted=False).values
    return largest.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(-1, keepdim=True)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Choose the k largest scores of each row [..., p], as a bool mask; of equal scores the leftmost win.

    >>> top_k(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2)
    tensor([[False,  True,  True, False]])
    """
    if scores.is_cuda and refusal("triton", "cuda", scores.dtype, scores.shape[-1]) is None:
        return TOP_K(scores.detach(), k)
    kth = kth_largest(scores, k)
    above, ties = scores > kth, scores == kth
    return above | (ties & (ties.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


def _top_k(scores: Tensor, k: int) -> Tensor:
    return importlib.import_module("slms.kernels.gpu.choice").top_k(scores, k)  # Triton exists for Linux alone


# As PyTorch's operations it is ten passes over the scores.
TOP_K = library.custom_op(
    "kernels::top_k", _top_k, schema="(Tensor scores, SymInt k) -> Tensor", mutates_args=(), device_types="cuda"
)


@TOP_K.register_fake
def _fake_top_k(scores: Tensor, k: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool, memory_format=torch.contiguous_format)


def choose(x: Tensor, router: Router) -> tuple[Tensor, Tensor]:
    """Choose pathways for x [n, d]: gates [n, p], float32 and 0 where not chosen, and the choice [n, p]."""
    features = x.float()
    if router.W_in is not None and router.b_in is not None:
        features = F.linear(features, router.W_in.float(), router.b_in.float()).relu()
    scores = F.linear(features, router.W_out.float(), router.b_out.float())
    n_shared, k = router.n_shared, router.k - router.n_shared
    ranked = (scores.detach() + router.bias.float())[:, n_shared:]
    chosen = F.pad(top_k(ranked, k), (n_shared, 0))
    kind = GATES[router.gate]
    if kind == SOFTMAX:
        value = k * scores.masked_fill(~chosen, -torch.inf).softmax(1)
    else:
        value = scores.sigmoid() if kind == SIGMOID else torch.ones_like(scores)
    if router.ramp is not None and router.gate in ("ramp", "blend"):
        value = 1 + router.ramp.float() * (value - 1)
    shared = torch.arange(scores.shape[1], device=scores.device) < n_shared
    return torch.where(shared, 1, torch.where(chosen, value, 0)), chosen | shared
