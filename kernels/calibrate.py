"""Measures, once per machine and shape, which backend is fastest at each number of tokens and density."""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from slms.kernels.call import Call
from slms.kernels.costs import Shape, save_measurements
from slms.kernels.dispatch import candidates, forget_choices, routed_mlp
from slms.kernels.timing import random_call, time_together

log = logging.getLogger(__name__)


def one_pass(
    call: Call, shape: Shape, forward: Callable[[], Tensor], more: Sequence[Tensor] = ()
) -> Callable[[], object]:
    """A function that runs forward alone without autograd, or forward and the gradients of all leaves and of `more`."""
    if not shape.training:
        return torch.no_grad()(forward)
    leaves = [*call.leaves, *more]
    upstream = torch.ones_like(call.x)

    def run() -> object:
        return torch.autograd.grad(forward(), leaves, upstream, allow_unused=True)

    return run


def calibrate(
    d_model: int,
    d_ff: int,
    n_pathways: int,
    *,
    gated: bool = False,
    activation: str = "gelu_new",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    training: bool = False,
    tokens: Sequence[int] = (1, 2, 4, 8, 16, 64, 256, 1024),
    densities: Sequence[float] = (0.125, 0.25, 0.5, 1.0),
    seconds: float = 0.1,
) -> Path:
    """Time every backend that can run, at each number of tokens and density, and keep the table; returns its file.

    From then on "auto" uses the nearest entry, in this process and in later ones with the same processor, number of
    threads and PyTorch. seconds: how long to measure each point, with at least five rounds.
    """
    shape = Shape(d_model, d_ff, n_pathways, gated, str(dtype).removeprefix("torch."), device, training)
    rows = []
    for n_tokens in tokens:
        for density in densities:
            call = random_call(shape, n_tokens, density, activation)
            runs = {
                name: one_pass(call, shape, functools.partial(routed_mlp, call, name)) for name in candidates(shape)
            }
            us = {name: spread.p50 for name, spread in time_together(runs, device, seconds).items()}
            rows.append({"tokens": n_tokens, "density": density, "us": us})
            log.info("%s tokens, density %g: %s", n_tokens, density, us)
    path = save_measurements(shape, rows)
    forget_choices()
    return path
