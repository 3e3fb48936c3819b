"""AdamW with decoupled parameter groups and a warm-up–cosine schedule."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Args:
        lr: peak learning rate.
        router_lr: peak learning rate of the routers; null means `lr`.
        weight_decay: decay of matrices; vectors are not decayed.
        betas: AdamW's moment decays.
        warmup: length of the linear warm-up, as a share of all steps.
        lr_end: learning rate at the last step, as a share of the peak; the rate falls to it along a cosine.
    """

    lr: float = 1e-3
    router_lr: float | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.02
    lr_end: float = 0.1

    def __post_init__(self):
        if not self.lr > 0:
            raise ValueError(f"model.optimizer.lr is {self.lr}; it must be positive")
        for name in ("warmup", "lr_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.optimizer.{name} is {getattr(self, name)}; it must lie in [0, 1]")


def build_optimizer(model: nn.Module, config: OptimizerConfig, fused: bool = True) -> torch.optim.AdamW:
    """Make AdamW over the trainable parameters in three kinds of groups: matrices, vectors, routers.

    fused: use one kernel for the whole step; it does not work with a loss scaler (`16-mixed`) and clipped gradients.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((".router." in name, parameter.ndim >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": config.router_lr or config.lr if is_router else config.lr,
                "weight_decay": config.weight_decay if is_matrix else 0.0,
            }
            for (is_router, is_matrix), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        fused=fused,
    )


def lr_share(step: int, total: int, config: OptimizerConfig) -> float:
    """The learning rate at `step` of `total`, as a share of its peak.

    >>> [round(lr_share(s, 100, OptimizerConfig(warmup=0.1, lr_end=0.2)), 2) for s in (0, 9, 10, 100)]
    [0.1, 1.0, 1.0, 0.2]
    """
    warm = round(config.warmup * total)
    if step < warm:
        return (step + 1) / warm
    progress = min((step - warm) / max(total - warm, 1), 1.0)
    return config.lr_end + (1 - config.lr_end) * 0.5 * (1 + math.cos(math.pi * progress))
