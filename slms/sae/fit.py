"""Trains one coder in a plain loop, with the same step as a run of `train.py` but without Lightning.

Shapes: n tokens, d width of a site.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from slms.progress import progress
from slms.sae.optim import CoderOptimizerConfig
from slms.sae.training_coder import TrainingCoder


class Batches(Protocol):
    """An iterator of batches, or an `ActivationStream`."""

    def __next__(self) -> dict[str, Tensor]: ...


def fit(
    training: TrainingCoder,
    batches: Batches,
    steps: int,
    optimizer: CoderOptimizerConfig = CoderOptimizerConfig(),  # noqa: B008  frozen
) -> TrainingCoder:
    """Train for `steps`. A run of `train.py` on the same batches ends with the same weights, bit for bit.

    Args:
        training: the coder.
        batches: activations {site: [n, d]}, with the same n in every batch.
        steps: number of batches to train on.
        optimizer: Adam and its schedule.

    Returns:
        `training`, ready for inference.
    """
    adam = optimizer.adam([training.coder], steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: optimizer.share(step, steps))
    training.train()
    for step in progress(range(steps), "training"):
        batch = next(batches)
        tokens = len(batch[training.source.name])
        optimizer.set_step(training.coder, step, steps)
        losses = training.loss(batch, optimizer.dead_after(steps * tokens))
        training.observe(losses, lambda tensor: tensor)
        adam.zero_grad()
        losses.total.backward()
        training.coder.project_gradient()
        optimizer.clip_gradient(training.coder)
        adam.step()
        schedule.step()
        training.coder.after_step()
    return training.eval()
