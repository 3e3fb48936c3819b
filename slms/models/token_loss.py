"""Losses of next tokens that never hold the logits of all tokens: tokens pass through the head a part at a time.

A vocabulary of 49,152 words makes the logits of 2,048 tokens 400 MB, and a loss, its softmax and their gradients are
several times as many. Here a part's logits are made, used and dropped, forward and backward at once: the loss of a part
gives the gradient with respect to its logits, which goes on to the hidden states and adds up for the head's weight
(the way of Liger's fused linear cross-entropy, arXiv:2410.10989).

With logits y, p = softmax(y), target t and a teacher's q = softmax(y′):
nll = −ln p_t, KL = Σ_v q_v (ln q_v − ln p_v), ∂nll/∂y = p − onehot(t), ∂KL/∂y = p − q.

Shapes: n tokens, d model, v vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from slms.models.head import Head

IGNORED = -100
"""As a target: no loss at this token."""
PART = 2**23
"""Logits of one part: 32 MiB in fp32, where the cost of reading the head's weight once more is lost in the products."""
FEWEST = 64
"""Tokens of one part at least."""


class TokenLoss(NamedTuple):
    """What one batch is trained on."""

    total: Tensor
    """nll_weight · nll + kl_weight · kl, the only one of the three that has a gradient"""
    nll: Tensor
    """mean over the counted tokens, nats"""
    kl: Tensor | None
    """mean over all tokens of KL(teacher ‖ model), nats"""


def next_tokens(input_ids: Tensor) -> Tensor:
    """The target of each token of blocks [b, t]: the one after it; none for the last."""
    return F.pad(input_ids[:, 1:], (0, 1), value=IGNORED)


def token_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    teacher: tuple[Tensor, Head] | None = None,
    nll_weight: float = 1.0,
    kl_weight: float = 0.0,
) -> TokenLoss:
    """Cross-entropy and distillation of tokens, differentiable once in the hidden states, the head's weight and bias.

    Args:
        hidden: [..., d], the head's inputs; autocast applies to their products as to the head's own.
        targets: int64 [...], `IGNORED` where a token does not count.
        teacher: hidden states of the same tokens, [..., d′], and the head over the same vocabulary; no gradient.
    """
    parts = (hidden.flatten(0, -2), head.weight, head.bias, head, targets.flatten(), teacher, nll_weight, kl_weight)
    total, nll, kl = _TokenLoss.apply(*parts)
    return TokenLoss(total, nll, None if teacher is None else kl)


@torch.no_grad()
def nll_of(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """−ln p(target) of each token in nats, at least fp32, [...]; hidden [..., d], targets [...], 0 where `IGNORED`."""
    head = head.cast(hidden)
    x, t = hidden.flatten(0, -2), targets.flatten()
    size = _rows(x, head)
    parts = [
        F.cross_entropy(head.logits(some), of, reduction="none", ignore_index=IGNORED)
        for some, of in zip(x.split(size), t.split(size), strict=True)
    ]
    return torch.cat(parts).view(targets.shape)


@torch.no_grad()
def kl_of(hidden: Tensor, head: Head, teacher: tuple[Tensor, Head]) -> Tensor:
    """KL(teacher ‖ model) of each token in nats, at least fp32, [...]; both hidden states [..., d]."""
    head, of = head.cast(hidden), teacher[1].cast(teacher[0])
    x, y = hidden.flatten(0, -2), teacher[0].flatten(0, -2)
    size = _rows(x, head)
    parts = [
        F.kl_div(head.log_p(a), of.log_p(b), log_target=True, reduction="none").sum(1)
        for a, b in zip(x.split(size), y.split(size), strict=True)
    ]
    return torch.cat(parts).view(hidden.shape[:-1])


def _rows(x: Tensor, head: Head) -> int:
    return max(PART // (x.shape[1] if head.weight is None else len(head.weight)), FEWEST)


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        head: Head,
        targets: Tensor,
        teacher: tuple[Tensor, Head] | None,
        nll_weight: float,
        kl_weight: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, (to_hidden, to_weight, to_bias) = len(hidden), ctx.needs_input_grad[:3]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        ctx.dtypes = hidden.dtype, getattr(weight, "dtype", None), getattr(bias, "dtype", None)
        head = head.cast(hidden)
        counted = (targets != IGNORED).to(wide)
        # Weights of the tokens in n times the loss: the gradients of few bits are of the size of p, not of p / n.
        a = nll_weight * n / counted.sum().clamp_min(1) * counted
        if teacher is not None:
            theirs, their_head = teacher[0].flatten(0, -2), teacher[1].cast(teacher[0])
        nll, kl = hidden.new_zeros(n, dtype=wide), hidden.new_zeros(n, dtype=wide)
        dx = torch.empty_like(hidden) if to_hidden else None
        dW = None if not to_weight else torch.zeros_like(weight, dtype=wide)
        db = None if not to_bias else torch.zeros_like(bias, dtype=wide)

        def part(rows: slice) -> None:
            y = head.logits(x := hidden[rows])
            log_p, t = y.log_softmax(1), targets[rows].clamp(min=0)[:, None]
            nll[rows] = -log_p.gather(1, t)[:, 0] * counted[rows]
            q = None
            if teacher is not None:
                log_q = their_head.log_p(theirs[rows])
                q = log_q.exp()
                kl[rows] = log_q.sub_(log_p).mul_(q).sum(1)
                del log_q
            if not any(ctx.needs_input_grad):
                return
            g = log_p.exp_().mul_(a[rows, None] + kl_weight * (q is not None))
            g.scatter_add_(1, t, -a[rows, None])
            if q is not None:
                g.sub_(q, alpha=kl_weight)
            g = head.to_linear(g, y)
            if head.weight is None:
                dx[rows] = g
                return
            g, x = g.to(head.weight.dtype), x.to(head.weight.dtype)
            if dx is not None:
                dx[rows] = g @ head.weight
            if dW is not None:
                dW.addmm_(g.T, x) if g.dtype == wide else dW.add_(g.T @ x)
            if db is not None:
                db.add_(g.sum(0))

        size = _rows(hidden, head)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, n, size):
                part(slice(start, start + size))
        ctx.found, ctx.n = (dx, dW, db), n
        mean_nll, mean_kl = nll.sum() / counted.sum().clamp_min(1), kl.mean()
        ctx.mark_non_differentiable(mean_nll, mean_kl)
        return nll_weight * mean_nll + kl_weight * mean_kl, mean_nll, mean_kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.found is None:
            raise RuntimeError("token_loss: a second backward pass; the first one has used up the gradients.")
        found, ctx.found = ctx.found, None  # scaled in place: another copy of the head is a lot of memory
        scale = total / ctx.n
        made = [None if x is None else x.mul_(scale).to(dtype) for x, dtype in zip(found, ctx.dtypes, strict=True)]
        return (*made, None, None, None, None, None)
