"""Training one coder in a plain loop: the step of a run of `train.py`, without Lightning.

Shapes: n tokens, d width of a site.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from slms.sae.optim import CoderOptimizerConfig
from slms.sae.trainee import Trainee


class Batches(Protocol):
    """An iterator or an `ActivationStream`."""

    def __next__(self) -> dict[str, Tensor]: ...


def fit(
    trainee: Trainee,
    batches: Batches,
    steps: int,
    optimizer: CoderOptimizerConfig = CoderOptimizerConfig(),  # noqa: B008  frozen
) -> Trainee:
    """Train for `steps`; a run of `train.py` on the same batches ends with the same weights, bit for bit.

    Args:
        trainee: the coder.
        batches: activations {site: [n, d]}, all of one n.
        steps: how many batches to train on.
        optimizer: Adam and its schedule.

    Returns:
        `trainee`, ready for inference.
    """
    adam = optimizer.adam([trainee.coder], steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: optimizer.share(step, steps))
    trainee.train()
    for step in range(steps):
        batch = next(batches)
        tokens = len(batch[trainee.source.name])
        optimizer.prepare(trainee.coder, step, steps)
        losses = trainee.loss(batch, optimizer.dead_after(steps * tokens))
        trainee.observe(losses, lambda tensor: tensor)
        adam.zero_grad()
        losses.total.backward()
        trainee.coder.project_gradient()
        optimizer.clip_gradient(trainee.coder)
        adam.step()
        schedule.step()
        trainee.coder.after_step()
    return trainee.eval()
