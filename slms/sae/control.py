"""Trains the control of a coder: a coder of equal kind and size, on the same model with random weights.

Its score is what a coder finds in any network of that shape that reads this text.

Shapes: b blocks, t position.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from slms.data.module import BlockOrder
from slms.models.activation_stream import ActivationStream, BufferConfig
from slms.models.collect import Collector
from slms.models.pair import Models
from slms.models.sites import Site
from slms.sae.config import CoderConfig, CoderSpec
from slms.sae.fit import fit
from slms.sae.training_coder import TrainingCoder

BUFFER = BufferConfig(batch_size=2048, chunk_tokens=65_536)


def train_control(
    model: Models,
    source: Site,
    target: Site,
    blocks: np.ndarray,
    special: Tensor,
    coder: CoderConfig,
    n_tokens: int,
    seed: int = 0,
) -> TrainingCoder:
    """Train a coder of `model` at `source`; return it ready for inference.

    Args:
        model: the model with random weights, or two.
        source: the site where the coder reads; target: the site that it reconstructs.
        blocks: training text, token ids [b, t].
        special: token ids that are left out.
        coder: the coder's configuration.
        n_tokens: number of tokens to train on; blocks are read again when used up.
        seed: seeds the order of the activations.

    Raises:
        ValueError: there are too few blocks or tokens for one batch.
    """
    b = BUFFER
    rows = min(b.lm_batch_size, len(blocks))
    forwards = max(b.chunk_tokens // (rows * blocks.shape[1]), 1)
    order = BlockOrder(len(blocks), rows, forwards, seed)
    collect = Collector(model, list(dict.fromkeys((source, target))), blocks, order, special, b.max_norm)
    stream = ActivationStream(collect, collect.tokens, min(b.batch_size, n_tokens), seed, prefetch=False)
    chunk = stream.first_chunk()
    x, y = chunk[source.name], chunk[target.name]
    if source.kind == "pathway":
        x, y = x[x.any(1)], y[x.any(1)]
    return fit(_training(source, target, coder, x, y), stream, max(n_tokens // stream.batch_size, 1))


def control_of(state: Mapping[str, Tensor], source: Site, target: Site, coder: CoderConfig) -> TrainingCoder:
    """Rebuild a control that was trained before, from its `state_dict`."""
    widths = (state["coder.W_enc"].shape[1], len(state["mean"]))
    made = _training(source, target, coder, *(torch.rand(2, width) for width in widths))  # of the right shapes
    made.load_state_dict(state)
    return made.eval()


def _training(source: Site, target: Site, coder: CoderConfig, x: Tensor, y: Tensor) -> TrainingCoder:
    spec = CoderSpec(source.name, None if source == target else target.name, coder=coder)
    return TrainingCoder(spec, source, target, x, y)
