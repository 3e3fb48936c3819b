"""Next-token losses that never hold the logits of all tokens, because tokens pass through the head in parts.

With a vocabulary of 49,152 words, the logits of 2,048 tokens take 400 MB; a loss, its softmax and their gradients take
several times as much. Here the logits of one part are computed, used for both forward and backward, and dropped. The
loss of a part gives the gradient of its logits, which passes to the hidden states and is summed for the head's weight
(as in Liger's fused linear cross-entropy, arXiv:2410.10989).

With logits y, p = softmax(y), target t and a teacher's q = softmax(y′):
nll = −ln p_t, KL = Σ_v q_v (ln q_v − ln p_v), ∂nll/∂y = p − onehot(t), ∂KL/∂y = p − q.

Shapes: n tokens, d model, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from slms.models.head import Head

IGNORED = -100
"""As a target: no loss at this token."""
ROOM = 2**24
"""Logits, or numbers as many, that are held at once: 64 MiB in fp32. Larger parts were not faster, smaller ones are."""
FEWEST = 64
"""Tokens of one part at least."""


class TokenLoss(NamedTuple):
    """The losses of one training batch."""

    total: Tensor
    """nll_weight · nll + kl_weight · kl; only this one has a gradient"""
    nll: Tensor
    """mean over the counted tokens, in nats"""
    kl: Tensor | None
    """mean over all tokens of KL(teacher ‖ model), in nats"""


def next_tokens(input_ids: Tensor) -> Tensor:
    """Return the target of each token of blocks [b, t], which is the next token; the last has none."""
    return F.pad(input_ids[:, 1:], (0, 1), value=IGNORED)


def token_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    teacher: tuple[Tensor, Head] | None = None,
    nll_weight: float = 1.0,
    kl_weight: float = 0.0,
) -> TokenLoss:
    """Compute cross-entropy and distillation losses, differentiable once in hidden states, head weight and bias.

    Args:
        hidden: the head's inputs [..., d]; autocast applies here as it does in the head.
        targets: int64 [...], `IGNORED` where a token does not count.
        teacher: hidden states [..., d′] of the same tokens and a head over the same vocabulary; they get no gradient.
    """
    parts = (hidden.flatten(0, -2), head.weight, head.bias, head, targets.flatten(), teacher, nll_weight, kl_weight)
    total, nll, kl = _TokenLoss.apply(*parts)
    return TokenLoss(total, nll, None if teacher is None else kl)


@torch.no_grad()
def nll_of(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Compute each token's −ln p(target) [...] in nats, ≥ fp32; 0 if `IGNORED`. hidden [..., d], targets [...]"""
    head, x, t = head.cast(hidden), hidden.flatten(0, -2), targets.flatten()
    nats = x.new_empty(len(x), dtype=_wide(x))
    for rows, (room,) in _parts(x, head, 1):
        z = _shifted(head.logits(x[rows], room))
        nats[rows] = -_at(z, t[rows]) + z.exp_().sum(1).log_()
    return nats.masked_fill_(t == IGNORED, 0.0).view(targets.shape)


@torch.no_grad()
def kl_of(hidden: Tensor, head: Head, teacher: tuple[Tensor, Head]) -> Tensor:
    """Compute KL(teacher ‖ model) of each token [...] in nats, at least fp32; both hidden states are [..., d]."""
    head, x = head.cast(hidden), hidden.flatten(0, -2)
    theirs, x_theirs = teacher[1].cast(teacher[0]), teacher[0].flatten(0, -2)
    nats = x.new_empty(len(x), dtype=_wide(x))
    for rows, (room, *more) in _parts(x, head, 3):
        z = _shifted(head.logits(x[rows], room))
        _, cross = _against(z, theirs, x_theirs[rows], *more)
        nats[rows] = cross + z.exp_().sum(1).log_()
    return nats.view(hidden.shape[:-1])


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _parts(x: Tensor, head: Head, many: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of x [n, d] in parts, each with `many` buffers for its logits, [many, rows, v].

    All parts share the buffers, because fresh pages from the system would cost a quarter of the product's time.
    """
    v = x.shape[1] if head.weight is None else len(head.weight)
    size = max(min(ROOM // (v * many), len(x)), FEWEST)
    rooms = x.new_empty(many, min(size, len(x)), v, dtype=_wide(x))
    for start in range(0, len(x), size):
        rows = slice(start, min(start + size, len(x)))
        yield rows, rooms[:, : rows.stop - rows.start]


def _shifted(y: Tensor) -> Tensor:
    """Subtract the largest of each row from y, in place; the softmax stays the same and exp cannot overflow."""
    return y.sub_(y.amax(1, keepdim=True))


def _at(y: Tensor, targets: Tensor) -> Tensor:
    return y.gather(1, targets[:, None].clamp(min=0))[:, 0]


def _against(z: Tensor, theirs: Head, x: Tensor, room: Tensor, another: Tensor) -> tuple[Tensor, Tensor]:
    """From the teacher's x, return q [n, v] in `another` and Σ_v q_v (ln q_v − z_v) [n], which is KL − ln Σ_v exp z."""
    z_theirs = _shifted(theirs.logits(x, room))
    q = torch.exp(z_theirs, out=another)
    total = q.sum(1, keepdim=True)
    q.div_(total)
    return q, z_theirs.sub_(z).mul_(q).sum(1) - total[:, 0].log()


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
        n, wide, head = len(hidden), _wide(hidden), head.cast(hidden)
        if teacher is not None:
            theirs, x_theirs = teacher[1].cast(teacher[0]), teacher[0].flatten(0, -2)
        counted = (targets != IGNORED).to(wide)
        # Tokens are weighted as in n times the loss, so that gradients in 16 bits are of the size of p, not of p / n.
        a, c = nll_weight * n / counted.sum().clamp_min(1) * counted, kl_weight if teacher is not None else 0.0
        nll, kl = hidden.new_zeros(n, dtype=wide), hidden.new_zeros(n, dtype=wide)
        sums = [
            torch.zeros_like(x, dtype=wide) if x is not None and needed else None
            for x, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        ]
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, rooms in _parts(hidden, head, 1 + (head.cap is not None) + 2 * (teacher is not None)):
                y = head.logits(hidden[rows], rooms[0])
                slope = head.slope(y, rooms[-1])
                z = _shifted(y)
                nll[rows] = -_at(z, targets[rows])
                if teacher is not None:
                    q, kl[rows] = _against(z, theirs, x_theirs[rows], rooms[1], rooms[2])
                p = z.exp_()
                total = p.sum(1, keepdim=True)
                nll[rows] += total[:, 0].log()
                kl[rows] += total[:, 0].log()
                if any(x is not None for x in sums):
                    of = a[rows, None]
                    g = p.mul_((of + c) / total).scatter_add_(1, targets[rows, None].clamp(min=0), -of)
                    g = g if teacher is None else g.sub_(q, alpha=c)
                    _add(sums, rows, head, hidden[rows], g.mul_(slope) if head.cap or slope != 1 else g)
        ctx.sums, ctx.n, ctx.dtypes = sums, n, [None if x is None else x.dtype for x in (hidden, weight, bias)]
        means = (nll * counted).sum() / counted.sum().clamp_min(1), kl.mean()
        ctx.mark_non_differentiable(*means)
        return nll_weight * means[0] + c * means[1], *means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.sums is None:
            raise RuntimeError("token_loss: a second backward pass; the first one has used up the gradients.")
        sums, ctx.sums = ctx.sums, None  # scaled in place, because another copy of the head takes much memory
        scale = total / ctx.n
        made = [None if x is None else x.mul_(scale).to(dtype) for x, dtype in zip(sums, ctx.dtypes, strict=True)]
        return (*made, None, None, None, None, None)


def _add(sums: list[Tensor | None], rows: slice, head: Head, x: Tensor, g: Tensor) -> None:
    """Add to the gradients of x [n, d] (its `rows`), W and b what follows from g [n, v], the gradient of x Wᵀ + b."""
    dx, dW, db = sums
    if db is not None:
        db.add_(g.sum(0))
    if head.weight is not None:
        g, x = g.to(head.weight.dtype), x.to(head.weight.dtype)
    if dx is not None:
        dx[rows] = g if head.weight is None else g @ head.weight
    if dW is not None and dW.dtype == g.dtype:
        dW.addmm_(g.T, x)
    elif dW is not None:
        dW.add_(g.T @ x)
