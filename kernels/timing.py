"""Times alternatives fairly on a shared machine, by taking them in turns, so that a disturbance affects all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from slms.kernels.call import Call
from slms.kernels.costs import Shape

FLUSH = 256 << 20  # bytes, several times a GPU's second cache


def random_call(shape: Shape, n_tokens: int, density: float, activation: str, seed: int = 0) -> Call:
    """A call of this shape in which each token chooses round(density · P) pathways, at least one, at random.

    Its tensors need gradients if the shape is one of training.
    """
    d, f, p = shape.d_model, shape.d_ff, shape.n_pathways
    there = torch.device(shape.device)
    generator = torch.Generator(there).manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*size, generator=generator, device=there) * scale
        return values.to(getattr(torch, shape.dtype)).requires_grad_(shape.training)

    k = min(p, max(1, round(density * p)))
    order = torch.rand(n_tokens, p, generator=generator, device=there).argsort(1)[:, :k]
    chosen = torch.zeros(n_tokens, p, dtype=torch.bool, device=there).scatter_(1, order, True)
    gates = torch.rand(n_tokens, p, generator=generator, device=there).requires_grad_(shape.training)
    offsets = tuple(f * i // p for i in range(p + 1))
    x, W_in, W_out = normal(n_tokens, d), normal(f, d, scale=d**-0.5), normal(f, d, scale=f**-0.5)
    b_in, W_gate = (None, normal(f, d, scale=d**-0.5)) if shape.gated else (normal(f), None)
    return Call(x, W_in, b_in, W_gate, None, W_out, gates, chosen, offsets, activation)


class Spread(NamedTuple):
    """Quantiles of one alternative's times, in µs."""

    p20: float
    p50: float
    p80: float


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """The same work as one CUDA graph, which the host starts with one call. It must not wait for the host."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles and fills caches, which a capture must not
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _gpu_clock() -> Callable[[Callable[[], object]], float]:
    """A clock that times one call between two events, in µs, after overwriting the second cache."""
    flush = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def once(run: Callable[[], object]) -> float:
        flush.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    return once


def _cpu_clock() -> Callable[[Callable[[], object]], float]:
    clock = time.perf_counter_ns if torch.get_num_threads() > 1 else time.process_time_ns

    def once(run: Callable[[], object]) -> float:
        start = clock()
        run()
        return (clock() - start) / 1e3

    return once


def time_together(alternatives: Mapping[str, Callable[[], object]], device: str, seconds: float) -> dict[str, Spread]:
    """Run the alternatives in turns for about `seconds`, at least five rounds after a warm-up.

    With one CPU thread it takes the processor time of the process, which neighbours disturb least; with several, whose
    times would add up, wall time; on a GPU, the time between events, after overwriting its caches.
    """
    once = _cpu_clock() if device == "cpu" else _gpu_clock()
    for run in alternatives.values():
        once(run)
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    deadline = time.monotonic() + seconds
    while len(next(iter(times.values()))) < 5 or time.monotonic() < deadline:
        for name, run in alternatives.items():
            times[name].append(once(run))
    return {name: Spread(*(statistics.quantiles(t, n=10)[i] for i in (1, 4, 7))) for name, t in times.items()}
