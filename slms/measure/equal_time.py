"""How wide a dense MLP may be to decode a token in the time that a routed one takes, measured on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from slms.kernels.timing import time_together
from slms.models.anatomy import find_mlps
from slms.models.convert import with_fresh_mlps
from slms.models.cut_lm import narrow
from slms.routing import RoutingConfig

SECONDS = 4.0
"""How long the nine alternatives are timed, in turns."""
SHARES = tuple(i / 8 for i in range(1, 9))
"""The widths that are timed, as shares of the dense one."""
LAYERS = 4
"""The MLPs that are timed; the other alternatives' weights drive theirs out of the caches between turns."""


class EqualTime(NamedTuple):
    """Widths, and the times that decide them: µs a token for the same few MLPs, 20th percentiles."""

    widths: dict[int, int]
    """by layer"""
    routed_us: float
    dense_us: dict[str, float]
    """share of the neurons, as text, → time"""


@torch.inference_mode()
def equal_time(model: PreTrainedModel, routing: RoutingConfig, seconds: float = SECONDS) -> EqualTime:
    """Time the MLPs that `routing` would make of a dense model, and narrower dense ones, in turns on one token.

    The widest that is not slower is found by interpolation, the same share of neurons in every layer; never more than
    all. Weights are random, since how many neurons run does not depend on them.
    """
    dense, (routed, layers) = find_mlps(model), with_fresh_mlps(model, routing)
    full = {i: layer.offsets[-1] for i, layer in layers.items()}
    some = list(layers)[:: max(1, len(layers) // LAYERS)][:LAYERS]
    runs = {"routed": _one_token(routed, [layers[i] for i in some])}
    for share in SHARES:
        cut = [narrow(copy.deepcopy(dense[i]), _width(share, full[i])) for i in some]
        runs[str(share)] = _one_token(routed, cut)
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


def _one_token(model: PreTrainedModel, mlps: Sequence[nn.Module]) -> Callable[[], object]:
    """One token of the model's width, device and dtype through some MLPs, one after the other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, model.config.hidden_size, generator=generator).to(model.device, model.dtype)
    for mlp in mlps:
        mlp.eval()

    def run() -> object:
        return [mlp(x) for mlp in mlps]

    return run
