"""Losses that keep all pathways in use: global load balancing, the router z-loss, and balancing by bias.

Shapes: n tokens, p pathways. Each routed layer has its own :class:`GlobalBalance`. Layers are never pooled, because a
sum over layers can look balanced while each layer has collapsed.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class BalanceConfig:
    """Weights of the balancing terms.

    Args:
        weight: final weight of the global load-balancing loss, a mean over routed layers; docs/log.md says why 0.1.
        weight_start: weight at the first optimizer step.
        weight_steps: number of optimizer steps over which the weight goes from `weight_start` to `weight`; the last of
            them has `weight`. Null means the whole run.
        momentum: share of the past in the running pathway frequencies; 0 uses only the last global batch.
        z_weight: weight of the router z-loss (ST-MoE, arXiv:2202.08906).
        bias_rate: how far the selection bias moves at each optimizer step, in units of the score; 0 switches it off
            (arXiv:2408.15664 uses 1e-3).
    """

    weight: float = 0.1
    weight_start: float = 0.05
    weight_steps: int | None = None
    momentum: float = 0.9
    z_weight: float = 0.001
    bias_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("weight", "weight_start", "z_weight", "bias_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"`balance.{name}` is {getattr(self, name)}; it must be at least 0.")
        if self.weight_steps is not None and self.weight_steps < 1:
            raise ValueError(f"`balance.weight_steps` is {self.weight_steps}; it must be at least 1, or null.")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"`balance.momentum` is {self.momentum}; it must be at least 0 and below 1.")

    def weight_at(self, step: int, total_steps: int) -> float:
        """Weight at optimizer step ``step`` (from 0) of ``total_steps``; it is linear and reaches its end on the last.

        >>> [BalanceConfig(weight=0.1, weight_start=0.0).weight_at(s, 3) for s in range(4)]
        [0.0, 0.05, 0.1, 0.1]
        """
        last = (self.weight_steps or total_steps) - 1
        if step >= last:
            return self.weight
        return self.weight_start + (self.weight - self.weight_start) * step / last


class GlobalBalance(nn.Module):
    """L = P · Σ_p f_p · P̄_p with frequencies of global batches (Demons in the Detail, arXiv:2501.11873).

    Of pathways that compete in `n_groups` groups of equal size, as attention heads do, L is the mean over the groups.

    P̄_p is this micro-batch's mean router probability over real tokens; it carries the gradient. f_p is the share of
    *hard* choices that went to pathway p (Σ_p f_p = 1, whatever k); it carries none. It is the running mean, with
    `momentum`, over the earlier optimizer steps, of the counts that a step sums over all ranks and micro-batches. L is
    1 when either factor is uniform (f is, before the first step) and grows to P / k as both collapse: with k choices a
    token, no f_p exceeds 1 / k.

    The paper counts the current step as well. Its first micro-batches do not know the later ones, so the loss would
    depend on how you split a global batch. Counting only earlier steps gives the same gradient for 1 or 4 processes
    and 1 or 4 accumulated batches, and ranks communicate only once an optimizer step.

    Each rank contributes the gradient of its local mean. Their average, which DDP takes, is the gradient of the global
    batch if the ranks have equally many real tokens. Call :meth:`step` once after each optimizer step. Eval mode
    stores and communicates nothing; f is then that of the given batch.
    """

    counts: Tensor
    average: Tensor
    average_weight: Tensor

    def __init__(self, n_pathways: int, momentum: float = 0.9, n_shared: int = 0, n_groups: int = 1) -> None:
        super().__init__()
        assert (n_pathways - n_shared) % n_groups == 0, (n_pathways, n_shared, n_groups)
        self.n_routed, self.n_shared, self.momentum = n_pathways - n_shared, n_shared, momentum
        self.n_groups = n_groups
        # int64 survives module.to(bfloat16)
        self.register_buffer("counts", torch.zeros(self.n_routed, dtype=torch.int64))
        self.register_buffer("average", torch.zeros(self.n_routed))
        self.register_buffer("average_weight", torch.zeros(()))

    def forward(self, probs: Tensor, chosen: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss (a scalar) of probs [n, p] and chosen [n, p] bool; mask [n] is True at real tokens."""
        probs, chosen = probs[:, self.n_shared :], chosen[:, self.n_shared :]
        if mask is not None:
            probs, chosen = probs * mask[:, None], chosen & mask[:, None]
        n_real = probs.shape[0] if mask is None else mask.sum().clamp_min(1)
        counts = chosen.detach().sum(0)
        if self.training:
            self.counts += counts
            frequency = self._past()
        else:
            frequency = self._normalised(counts)
        return self.n_routed / self.n_groups**2 * (frequency.to(probs) * probs.sum(0) / n_real).sum()

    def _past(self) -> Tensor:
        """Running mean over the earlier steps, divided by its weight so that the start is not biased towards 0."""
        started = self.average_weight > 0
        even = self.n_groups / self.n_routed
        return torch.where(started, self.average / torch.where(started, self.average_weight, 1.0), even)

    def _normalised(self, counts: Tensor) -> Tensor:
        """The counts [p − n_shared] as shares of their group's."""
        grouped = counts.view(self.n_groups, -1)
        return (grouped.float() / grouped.sum(1, keepdim=True).clamp_min(1)).flatten()

    @torch.no_grad()
    def step(self) -> Tensor:
        """Fold the counts of an ended optimizer step into the running mean; return its frequencies [p − n_shared].

        Every rank must call it: the counts are summed over ranks.
        """
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts)
        load = self._normalised(self.counts)
        if self.counts.sum() > 0:
            self.average.mul_(self.momentum).add_(load, alpha=1.0 - self.momentum)
            self.average_weight.mul_(self.momentum).add_(1.0 - self.momentum)
            self.counts.zero_()
        return load


def z_loss(scores: Tensor, mask: Tensor | None = None, n_shared: int = 0) -> Tensor:
    """Mean over real tokens of logsumexp(scores)² (ST-MoE, arXiv:2202.08906, eq. 5); scores [n, p], mask [n]."""
    squared = scores[:, n_shared:].logsumexp(-1).square()
    if mask is None:
        return squared.mean()
    return (squared * mask).sum() / mask.sum().clamp_min(1)


@torch.no_grad()
def bias_update(bias: Tensor, load: Tensor, rate: float) -> None:
    """Balance without an auxiliary loss (arXiv:2408.15664, alg. 1): b_p += rate · sign(mean load − load_p), in place.

    bias [p] is a router's ``selection_bias``; load [p − n_shared] is what :meth:`GlobalBalance.step` returned, so the
    bias of shared pathways stays 0. The result is recentred, because a common offset changes no choice but drifts.
    """
    routed = bias[bias.shape[0] - load.shape[0] :]
    routed += rate * torch.sign(load.mean() - load).to(bias)
    routed -= routed.mean()
