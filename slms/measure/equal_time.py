"""How wide a dense MLP may be to decode a token in the time that a routed one takes, measured on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from slms.kernels.timing import time_together
from slms.measure.speed import one_more_token
from slms.models.anatomy import find_mlps, replace_mlp
from slms.models.convert import with_fresh_mlps
from slms.models.cut_lm import narrow
from slms.models.decode_step import serves, speed_up
from slms.routing import RoutingConfig

SECONDS = 4.0
"""How long the nine alternatives are timed, in turns."""
SHARES = tuple(i / 8 for i in range(1, 9))
"""The widths that are timed, as shares of the dense one."""
LAYERS = 4
"""The MLPs that are timed; the other alternatives' weights drive theirs out of the caches between turns."""
TOKENS = 8
"""The vocabulary of the models that they are timed in."""


class EqualTime(NamedTuple):
    """Widths, and the times that decide them: µs a token for the same few MLPs, 20th percentiles."""

    widths: dict[int, int]
    """by layer"""
    routed_us: float
    dense_us: dict[str, float]
    """share of the neurons, as text, → time"""


@torch.no_grad()
def equal_time(model: PreTrainedModel, routing: RoutingConfig, seconds: float = SECONDS) -> EqualTime:
    """Time the MLPs that `routing` would make of a dense model, and narrower dense ones, in turns on one token.

    The widest that is not slower is found by interpolation, the same share of neurons in every layer; never more than
    all. Weights are random, since how many neurons run does not depend on them. Of a rule that holds a mean of k
    pathways, k are timed. Where `speed_up` serves the model, the MLPs are timed as the layers of a decoding step, which
    runs dense ones in compiled loops too; elsewhere alone.
    """
    dense, layers = find_mlps(model), with_fresh_mlps(model, routing.with_fixed_k())[1]
    full = {i: layer.offsets[-1] for i, layer in layers.items()}
    some = list(layers)[:: max(1, len(layers) // LAYERS)][:LAYERS]
    run = _step if serves(model) else _one_token
    runs = {"routed": run(model, [layers[i] for i in some])}
    for share in SHARES:
        cut = [narrow(copy.deepcopy(dense[i]), _width(share, full[i])) for i in some]
        runs[str(share)] = run(model, cut)
    times = {name: spread.p20 for name, spread in time_together(runs, str(model.device.type), seconds).items()}
    target = times.pop("routed")
    share = widest(target, SHARES, list(times.values()))
    return EqualTime({i: _width(share, f) for i, f in full.items()}, target, times)


def _width(share: float, neurons: int) -> int:
    return max(1, round(share * neurons))


def widest(target: float, shares: Sequence[float], times: Sequence[float]) -> float:
    """Interpolate the largest share whose time is at most `target`; times are made monotone first, from below.

    >>> widest(3.0, [0.25, 0.5, 1.0], [1.0, 2.0, 4.0]), widest(9.0, [0.5, 1.0], [1.0, 2.0])
    (0.75, 1.0)
    >>> widest(1.0, [0.5, 1.0], [2.0, 3.0])  # even the narrowest is slower: the time that the narrowest needs
    0.5
    """
    rising = np.maximum.accumulate(times)
    fits = np.flatnonzero(rising <= target)
    if not len(fits):
        return float(shares[0])
    last = int(fits[-1])
    if last == len(shares) - 1:
        return float(shares[-1])
    part = (target - rising[last]) / (rising[last + 1] - rising[last])
    return float(shares[last] + part * (shares[last + 1] - shares[last]))


def _step(model: PreTrainedModel, mlps: Sequence[nn.Module]) -> Callable[[], object]:
    """A decoding step of a model of the same kind with these MLPs alone and few tokens."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = len(mlps), TOKENS, None
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[: len(mlps)]
    with torch.random.fork_rng(devices=[]):
        small = AutoModelForCausalLM.from_config(config, dtype=model.dtype).to(model.device).eval()
    for i, mlp in enumerate(mlps):
        replace_mlp(small, i, mlp.eval())
    return one_more_token(speed_up(small), torch.zeros(1, 2, dtype=torch.long, device=model.device))


def _one_token(model: PreTrainedModel, mlps: Sequence[nn.Module]) -> Callable[[], object]:
    """One token of the model's width, device and dtype through some MLPs, one after the other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, model.config.hidden_size, generator=generator).to(model.device, model.dtype)
    for mlp in mlps:
        mlp.eval()

    def run() -> object:
        return [mlp(x) for mlp in mlps]

    return run
