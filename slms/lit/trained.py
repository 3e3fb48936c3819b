"""Opens the model of a training checkpoint, as it was at that step."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from slms.lit.checkpoint import config_in, damage
from slms.models.base import Base, BaseConfig, load_base


class Trained(NamedTuple):
    """A model at one step of its run."""

    base: Base
    config: dict[str, Any]
    """the configuration of its run"""
    tokens: int
    """the number of tokens that it was trained on"""


def model_at(checkpoint: Path) -> Trained:
    """Load the dense model of a checkpoint, with its tokenizer.

    Raises:
        ValueError: the checkpoint is missing, damaged, sharded, of a routed model, or does not hold its configuration.
    """
    if not checkpoint.is_file():
        raise ValueError(f"{checkpoint}: no such checkpoint file")
    if (why := damage(checkpoint)) is not None:
        raise ValueError(f"{checkpoint}: {why}")
    config = config_in(checkpoint)
    if config is None or "base" not in config.get("model", {}):
        raise ValueError(f"{checkpoint}: it holds no configuration of a language model; give its run's model/")
    if config["model"].get("routing") is not None:
        raise ValueError(f"{checkpoint}: only checkpoints of dense runs are opened; give the finished run")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    base = load_base(BaseConfig(**config["model"]["base"]))
    weights = {name.removeprefix("net."): w for name, w in state["state_dict"].items() if name.startswith("net.")}
    base.model.load_state_dict(weights)
    return Trained(base, config, tokens_at(checkpoint))


def tokens_at(checkpoint: Path) -> int:
    """The number of tokens that a run had been trained on at an intact checkpoint."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return state["callbacks"]["ResultsWriter"]["tokens"]
