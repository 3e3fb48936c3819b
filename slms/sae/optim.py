"""The optimizer of coders: Adam, the learning-rate schedule, and the rule by which a latent counts as dead."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from slms.sae.base import Coder
from slms.sae.coders import BatchTopK
from slms.sae.config import CoderConfig

LONG_RUN = 100_000  # steps


@dataclass(frozen=True)
class CoderOptimizerConfig:
    """Adam(0.9, 0.999, eps 6.25e-10) and its schedule.

    Args:
        lr: peak learning rate; null takes 2e-4/√(latents / 2¹⁴) (Gao et al., arXiv:2406.04093), meant for 10⁵ steps or
            more. In a shorter run, a coder with a fixed k takes √(10⁵ / steps) times as much, at most `max_lr`.
        max_lr: upper bound on the automatic learning rate; null takes 0.08/√(input dimension), at which one of Adam's
            steps moves a row by at most 0.08, while rows start at norm 1.
        clip: upper bound on the norm of a coder's gradient; null takes 0.01 for coders with a fixed k, 1 for others.
        warmup_steps: number of steps of linear warm-up, at most a twentieth of the run.
        decay: share of the run, at its end, over which the learning rate falls linearly to 0.
        sparsity_warmup: share of the run over which the penalty of `relu`, `gated` and `jump_relu` coders grows to its
            full weight.
        dead_tokens: number of tokens without use after which a latent counts as dead; null takes a hundredth of the
            run, at most 10 million.
    """

    lr: float | None = None
    max_lr: float | None = None
    clip: float | None = None
    warmup_steps: int = 1000
    decay: float = 0.4
    sparsity_warmup: float = 0.05
    dead_tokens: int | None = None

    def __post_init__(self):
        for name in ("lr", "max_lr", "clip", "dead_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"model.optimizer.{name} is {value}; it must be positive")
        if self.warmup_steps < 0:
            raise ValueError(f"model.optimizer.warmup_steps is {self.warmup_steps}; it must not be negative")
        for name in ("decay", "sparsity_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.optimizer.{name} is {getattr(self, name)}; it must lie in [0, 1]")

    def peak(self, coder: CoderConfig, d_in: int, d_sae: int, total: int) -> float:
        """Return the peak learning rate of a coder of d_in dimensions with d_sae latents in a run of `total` steps.

        >>> [CoderOptimizerConfig().peak(CoderConfig(), 64, 2**14, steps) for steps in (10**6, 1000, 10)]
        [0.0002, 0.002, 0.01]
        """
        # After 500 steps of 512 tokens with 1,024 latents, FVU was .100 at Gao's rate and .041 at ten times that rate.
        # With a penalty instead of a fixed k, most latents die at such rates (docs/log.md).
        short = max(LONG_RUN / max(total, 1), 1.0) ** 0.5 if coder.fixed_k else 1.0
        return self.lr or min(2e-4 / (d_sae / 2**14) ** 0.5 * short, self.max_lr or 0.08 / d_in**0.5)

    def warmup(self, total: int) -> int:
        """Return the number of warm-up steps in a run of `total`."""
        return min(self.warmup_steps, total // 20)

    def share(self, step: int, total: int) -> float:
        """Return the learning rate at `step` of `total` as a share of its peak.

        >>> config = CoderOptimizerConfig(warmup_steps=5, decay=0.5)
        >>> [config.share(step, 100) for step in (0, 4, 5, 49, 50, 75, 100)]
        [0.2, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
        """
        warm = self.warmup(total)
        if step < warm:
            return (step + 1) / warm
        left = (total - step) / (self.decay * total) if self.decay * total else 1.0
        return max(min(left, 1.0), 0.0)

    def dead_after(self, tokens: int) -> int:
        """Return the number of tokens without use that make a latent dead in a run of `tokens`."""
        return self.dead_tokens or max(min(tokens // 100, 10_000_000), 1)

    def adam(self, coders: Iterable[Coder], total: int, fused: bool = True) -> torch.optim.Adam:
        """Build the optimizer of a run of `total` steps at its peak rates: each coder's matrices, then its vectors.

        fused: use one kernel for the whole step; it does not work with a loss scaler (`16-mixed`) and clipping.

        Biases and thresholds learn at 1/√d of the matrices' rate, of an autoencoder with a fixed k at 3/√d, because
        activations are of order 1 and a matrix's entries of order 1/√d. At equal rates, biases close latents for good:
        with 32 latents a token of 64 dimensions 13 % are dead, not 6 (TopK, stories-1m, 500 steps; docs/log.md).
        """
        groups = []
        for coder in coders:
            lr = self.peak(coder.config, coder.d_in, coder.d_sae, total)
            parameters = list(coder.parameters())
            groups.append({"params": [p for p in parameters if p.dim() > 1], "lr": lr})
            share = min((3 if coder.starts_large else 1) / coder.d_in**0.5, 1)
            groups.append({"params": [p for p in parameters if p.dim() == 1], "lr": lr * share})
        return torch.optim.Adam(groups, betas=(0.9, 0.999), eps=6.25e-10, fused=fused)

    def clip_gradient(self, coder: Coder, bound: float | None = None) -> None:
        """Scale a coder's gradient down to norm `clip`, or `bound` if smaller and not 0; with a fixed k it is longer.

        Gradients fall with the error, tenfold in a short run; Adam remembers the first for 1,000 steps and would step
        too little later. FVU is .041 without clipping and .036 with it (stories-1m, TopK, 500 steps; docs/log.md).
        """
        clip = self.clip or (0.01 if coder.config.fixed_k else 1.0)
        nn.utils.clip_grad_norm_(coder.parameters(), min(clip, bound or clip))

    def set_step(self, coder: Coder, step: int, total: int) -> None:
        """Set what depends only on the step: the penalty's warm-up, and how many steps a threshold averages over."""
        warm = self.sparsity_warmup * total
        coder.sparsity_share = min((step + 1) / warm, 1.0) if warm else 1.0
        if isinstance(coder, BatchTopK):
            # This is short compared with the last fifth of the run, when the rate falls and the threshold settles.
            coder.memory = min(max(total // 50, 10), 1000)
