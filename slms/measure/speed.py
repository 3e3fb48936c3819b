"""Times a model on a prompt and on one more token, in turns with the dense model that it came from.

Shapes: t positions of the prompt, d model.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.kernels.timing import Spread, time_together
from slms.models.activations import mlp_inputs
from slms.models.anatomy import find_mlps
from slms.models.decode_step import speed_up
from slms.models.groups import groups_of, one_pass
from slms.models.transformers_internals import CACHE


class Pair(NamedTuple):
    """The times of two alternatives, taken in turns, in µs."""

    dense: Spread
    other: Spread

    @property
    def speedup(self) -> float:
        """The speedup by 20th percentiles, which other work on the machine disturbs least."""
        return self.dense.p20 / self.other.p20


class Speed(NamedTuple):
    """The times for one sequence, of the whole model and of its MLPs alone."""

    decode: Pair
    """one more token after the prompt, through the whole model with its head"""
    decode_mlps: Pair
    """the MLPs of that step alone, layer after layer"""
    prefill: Pair
    """the prompt through the whole model, head for the last position"""
    prefill_mlps: Pair


def compare_speed(dense: PreTrainedModel, other: PreTrainedModel, prompt: Tensor, seconds: float) -> Speed:
    """Time two models on a prompt [1, t], each pair in turns for about `seconds` / 4, at least five rounds.

    Both decode by the same engine, `speed_up` (in place), so that what is compared is what they compute.
    """
    for model in (dense, other):
        speed_up(model)
    device = str(dense.device.type)

    def pair(make: Callable[[PreTrainedModel], Callable[[], object]]) -> Pair:
        runs = {"dense": make(dense), "other": make(other)}
        return Pair(**time_together(runs, device, seconds / 4))

    with torch.inference_mode():
        return Speed(
            decode=pair(lambda model: one_more_token(model, prompt)),
            decode_mlps=pair(lambda model: all_mlps(model, prompt, last=True)),
            prefill=pair(lambda model: prefill(model, prompt)),
            prefill_mlps=pair(lambda model: all_mlps(model, prompt, last=False)),
        )


def prefill(model: PreTrainedModel, prompt: Tensor) -> Callable[[], object]:
    """The prompt [1, t] through the whole model, with the head for its last position."""
    return lambda: model(prompt, use_cache=True, logits_to_keep=1)


def one_more_token(model: PreTrainedModel, prompt: Tensor) -> Callable[[], object]:
    """A decoding step after the prompt [1, t]; you can repeat it, because it crops the cache back to the prompt."""
    cache = model(prompt, use_cache=True, logits_to_keep=1)[CACHE]
    token = prompt[:, -1:]

    def step() -> object:
        out = model(token, use_cache=True, **{CACHE: cache})
        cache.crop(-1)
        return out

    return step


def all_mlps(model: PreTrainedModel, prompt: Tensor, last: bool) -> Callable[[], object]:
    """Run all MLPs in order on the inputs that they get from the prompt, or only from its last position."""
    with mlp_inputs(model) as inputs:
        model(prompt, use_cache=True, logits_to_keep=1)
    mlps = find_mlps(model)
    calls = [(mlps[i], (x[-1:] if last else x).unsqueeze(0).clone()) for i, x in inputs.items()]
    groups = groups_of(model)

    def run() -> object:
        with one_pass(groups):
            return [mlp(x) for mlp, x in calls]

    return run
