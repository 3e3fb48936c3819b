"""Which weights change, AdamW with decoupled parameter groups for them, and a warm-up–cosine schedule."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from slms.models.anatomy import find_mlps
from slms.models.routed import routed_modules

Trained = Literal["all", "mlps", "routers"]
"""What may change; the rest of the model is frozen."""


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


def trained_by_default(routing: bool) -> Trained:
    """What a run with or without `model.routing` trains if nothing is said.

    A conversion changes MLPs only; embeddings and attention that stay the base's cost no gradients and no moments.
    """
    return "mlps" if routing else "all"


def train_only(model: PreTrainedModel, trained: Trained) -> None:
    """Freeze every weight of `model` that is not `trained`; what is frozen already stays so.

    Raises:
        ValueError: no weight is left to train.
    """
    if trained == "all":
        return
    routed = routed_modules(model).values()
    modules = (module.router for module in routed) if trained == "routers" else (*find_mlps(model).values(), *routed)
    kept = {parameter for module in modules for parameter in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter in kept)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model.train is {trained}; this model has no such weights that are not frozen")


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
                "lr": config.router_lr if is_router and config.router_lr is not None else config.lr,
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


def annealed_k(share: float, n_pathways: int, k: int) -> int:
    """Pathways per token after `share` of the annealing, which goes from all of them down to k in equal steps.

    >>> [annealed_k(share, 16, 4) for share in (0.0, 0.5, 0.99, 1.0, 2.0)]
    [16, 10, 4, 4, 4]
    """
    return max(k, round(n_pathways - min(share, 1.0) * (n_pathways - k)))
