"""Compares a model with its export, which transformers opens in a process that never imports slms.

Shapes: b blocks, t position, v vocabulary.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from slms.files import scratch
from slms.measure import stock_reader

PERPLEXITY = 1e-4
"""The largest relative difference of perplexity with which two models are equal; rounding in fp32 gives 1e-6."""
ARGMAX = 0.999
"""The smallest share of tokens on which equal models predict the same token; near ties fall either way."""


class Comparison(NamedTuple):
    """How two models agree on the same tokens."""

    tokens: int
    perplexity: float
    """of the model"""
    exported: float
    """perplexity of its export"""
    argmax: float
    """share of tokens at which both have the same largest logit"""
    largest: float
    """largest absolute difference of two logits"""

    @property
    def equal(self) -> bool:
        """Whether the two compute the same up to rounding."""
        return abs(self.exported / self.perplexity - 1) <= PERPLEXITY and self.argmax >= ARGMAX


@torch.inference_mode()
def compare_export(model: PreTrainedModel, directory: Path, input_ids: Tensor) -> Comparison:
    """Run a model and the checkpoint in `directory` on input_ids [b, t]; logits of one block are held at a time.

    Raises:
        ValueError: transformers cannot read the checkpoint; the message has its last line.
    """
    nats, same, largest, tokens = [0.0, 0.0], 0, 0.0, 0
    with scratch(directory.parent) as place:
        np.save(place / "blocks.npy", input_ids.cpu().numpy())
        command = [sys.executable, "-P", stock_reader.__file__, str(directory), str(place / "blocks.npy")]
        errors = place / "stderr"
        with errors.open("wb") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as reader:
            assert reader.stdout is not None
            for ids in input_ids:
                ours = model(ids[None].to(model.device)).logits[0].float().cpu()
                read = reader.stdout.read(4 * ours.numel())
                if len(read) < 4 * ours.numel():
                    break
                theirs = torch.frombuffer(bytearray(read), dtype=torch.float32).view_as(ours)
                for i, logits in enumerate((ours, theirs)):
                    nats[i] += F.cross_entropy(logits[:-1], ids[1:].cpu(), reduction="sum").double().item()
                same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
                largest = max(largest, (ours - theirs).abs().max().item())
                tokens += len(ids)
        if reader.returncode or tokens < input_ids.numel():
            said = errors.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise ValueError(f"transformers cannot read the export: {said[-1]}")
    predicted = tokens - len(input_ids)
    perplexity, exported = (math.exp(total / predicted) for total in nats)
    return Comparison(tokens, perplexity, exported, same / tokens, largest)
