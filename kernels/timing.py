"""Timing alternatives fairly on a shared machine: taken in turns, so that a disturbance meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.costs import Shape


class Call(NamedTuple):
    """Random inputs of one routed MLP; gradients are wanted where `training` asked for them."""

    x: Tensor
    W_in: Tensor
    b_in: Tensor | None
    W_gate: Tensor | None
    W_out: Tensor
    gates: Tensor
    chosen: Tensor
    offsets: tuple[int, ...]


def random_call(shape: Shape, n_tokens: int, density: float, seed: int = 0) -> Call:
    """A call of this shape in which each token chooses round(density · P) pathways, at least one, at random."""
    d, f, p = shape.d_model, shape.d_ff, shape.n_pathways
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*size, generator=generator) * scale
        return values.to(device=shape.device, dtype=getattr(torch, shape.dtype)).requires_grad_(shape.training)

    k = min(p, max(1, round(density * p)))
    order = torch.rand(n_tokens, p, generator=generator).argsort(1)[:, :k]
    chosen = torch.zeros(n_tokens, p, dtype=torch.bool).scatter_(1, order, True).to(shape.device)
    gates = torch.rand(n_tokens, p, generator=generator).to(shape.device).requires_grad_(shape.training)
    offsets = tuple(f * i // p for i in range(p + 1))
    return Call(
        x=normal(n_tokens, d),
        W_in=normal(f, d, scale=d**-0.5),
        b_in=None if shape.gated else normal(f),
        W_gate=normal(f, d, scale=d**-0.5) if shape.gated else None,
        W_out=normal(f, d, scale=f**-0.5),
        gates=gates,
        chosen=chosen,
        offsets=offsets,
    )


class Spread(NamedTuple):
    """Quantiles of the times of one alternative, in µs."""

    p20: float
    p50: float
    p80: float


def time_together(alternatives: Mapping[str, Callable[[], object]], device: str, seconds: float) -> dict[str, Spread]:
    """Runs the alternatives in turns for about this long, at least five rounds after a warm-up.

    With one CPU thread the processor time of the process is taken, which neighbours disturb least; with several, whose
    times would be added up, wall time; on a GPU synchronised wall time.
    """
    cuda = device != "cpu"
    clock = time.perf_counter_ns if cuda or torch.get_num_threads() > 1 else time.process_time_ns

    def once(run: Callable[[], object]) -> float:
        if cuda:
            torch.cuda.synchronize()
        start = clock()
        run()
        if cuda:
            torch.cuda.synchronize()
        return (clock() - start) / 1e3

    for run in alternatives.values():
        once(run)
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    deadline = time.monotonic() + seconds
    while len(next(iter(times.values()))) < 5 or time.monotonic() < deadline:
        for name, run in alternatives.items():
            times[name].append(once(run))
    return {name: Spread(*(statistics.quantiles(t, n=10)[i] for i in (1, 4, 7))) for name, t in times.items()}
