"""Times gate-selected neurons beside the dense MLP, and pathways beside their rivals, for `benchmarks.gpu`.

Times are medians in µs, weights from memory as in `benchmarks.kernels`. dense: the faster of eager and compiled;
epilogue, product: all rows, the choice in the up-projection or in a pass behind it; rows: those chosen alone; grouped:
by unit; auto: what `gate_plan` picks, with its name.
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import kernels
from benchmarks.gpu_parity import random_gate_call
from benchmarks.gpu_setting import Row, Setting
from benchmarks.kernels import arrange
from slms.kernels.backends import GPU_PATHWAYS, GPU_TOKENS
from slms.kernels.calibrate import one_pass
from slms.kernels.costs import Shape
from slms.kernels.dispatch import routed_mlp
from slms.kernels.gate import gate_mlp, units_of
from slms.kernels.gate_plan import gate_plan
from slms.kernels.gate_reference import GateCall
from slms.kernels.timing import random_call, time_together

# SmolLM2-135M, TinyLlama-1.1B, Llama 3.1 8B.
SHAPES = {"smollm2-135m": (576, 1536), "llama-1b": (2048, 5632), "llama-8b": (4096, 14336)}
DENSITIES = (0.5, 0.25)
DRY = "float64"  # of a dry run, for which no loop is compiled on the CPU


def dense_swiglu(x: Tensor, W_in: Tensor, W_gate: Tensor, W_out_t: Tensor) -> Tensor:
    """The MLP without a choice, W_out_t [d, f] in its usual layout."""
    return F.linear(F.silu(F.linear(x, W_gate)) * F.linear(x, W_in), W_out_t)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(dense_swiglu, dynamic=True)


def alternatives(call: GateCall, shape: Shape) -> dict[str, Callable[[], Tensor]]:
    """The ways to run one call here, by name."""
    n, gradients = len(call.x), shape.training
    W_out_t = call.W_out.detach().t().contiguous().requires_grad_(gradients)
    weights = call.x, call.W_in, call.W_gate, W_out_t
    runs: dict[str, Callable[[], Tensor]] = {"dense": lambda: dense_swiglu(*weights)}
    names = ["auto", "dense"]
    if not gradients and n <= GPU_TOKENS and shape.dtype != DRY:
        names.append("rows")
    if shape.n_pathways < shape.d_ff and n > GPU_TOKENS:
        names.append("grouped")
    if shape.device == "cuda":
        from slms.kernels.gpu.gate import gate_choice
        from slms.kernels.gpu.gate_many import gate_many, up_where_chosen

        runs["dense, compiled"] = lambda: _compiled()(*weights)
        units = units_of(call.offsets)
        runs["product"] = lambda: gate_many(call, units, True)
        names.remove("dense")
        if not gradients and call.k_out is None:

            def epilogue() -> Tensor:
                gate = F.linear(call.x, call.W_gate)
                return up_where_chosen(call, gate, gate_choice(gate, call, units), units) @ call.W_out

            runs["epilogue"] = epilogue
    for name in names:
        runs["product" if name == "dense" else name] = functools.partial(gate_mlp, call, name)
    return runs


def _measure(
    name: str, shape: Shape, n_tokens: int, density: float, setting: Setting, out: float | None = None
) -> Iterator[Row]:
    """out: the density of a second choice."""
    copies = 8 if n_tokens <= GPU_TOKENS and not setting.dry else 1
    calls = [random_gate_call(shape, n_tokens, density, seed, density_out=out) for seed in range(copies)]
    runs: dict[str, list[Callable[[], object]]] = {}
    for call in calls:
        leaves = [tensor for tensor in call[:6] if tensor is not None and tensor.requires_grad]
        for alternative, forward in alternatives(call, shape).items():
            run = torch.no_grad()(forward) if not shape.training else _both(forward, leaves)
            runs.setdefault(alternative, []).append(run)
    timed, at_once = arrange(runs, shape, n_tokens)
    times = time_together(timed, shape.device, setting.seconds)
    us = {run: spread.p50 / at_once for run, spread in times.items()}
    best = min(value for run, value in us.items() if run.startswith("dense"))
    dtype, p = getattr(torch, shape.dtype), shape.n_pathways
    mean = density if out is None else (density + out) / 2
    picked, _ = gate_plan(n_tokens, mean, shape.training, shape.device, dtype, p, shape.d_ff // p)
    row: Row = {"shape": name, "d": shape.d_model, "f": shape.d_ff, "units": p, "dtype": shape.dtype}
    row |= {"pass": "train" if shape.training else "forward", "tokens": n_tokens, "density": density}
    row |= {"density out": density if out is None else out, "picked": picked}
    row |= {f"{run} µs": round(value, 1) for run, value in us.items()}
    yield row | {"dense / auto": round(best / us["auto"], 2)}


def _both(forward: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], object]:
    """Forward and the gradients of all leaves; the dense rival's own W_out_t replaces W_out."""

    def run() -> object:
        y = forward()
        return torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)

    return run


def gate_rows(setting: Setting) -> Iterator[Row]:
    """Time single neurons at decode, at prompts and in training, then units of 16 and 128 neurons at prompts.

    Last, single neurons that are chosen twice, at the FLOPs of density .5 (SmolLM2's .60 and .40) and .25.
    """
    shapes = {"tiny": (16, 64)} if setting.dry else SHAPES
    decode = (1,) if setting.dry else (1, 2, 4, 8, 16)
    prompts, training = ((20,), (20,)) if setting.dry else ((512, 2048, 8192), (2048, 8192))
    dtype = DRY if setting.dry else "bfloat16"
    plans = [(n, False, 1) for n in decode] + [(n, False, 1) for n in prompts] + [(n, True, 1) for n in training]
    plans += [(n, False, m) for n, m in itertools.product(prompts[-1:], (16,) if setting.dry else (16, 128))]
    for (n, trained, m), (name, (d, f)), density in itertools.product(
        plans, shapes.items(), DENSITIES[:1] if setting.dry else DENSITIES
    ):
        shape = Shape(d, f, f // m, True, dtype, setting.device, trained)
        if m > 1 and shape.n_pathways > GPU_PATHWAYS:
            continue  # more than the grouped kernels take
        make = functools.partial(_measure, name, shape, n, density, setting)
        yield from setting.rows(f"{name}, {n} tokens, units of {m}, density {density}", make)
    twice = decode[:1] + prompts[-1:]
    for n, (name, (d, f)), (density, out) in itertools.product(twice, shapes.items(), ((0.6, 0.4), (0.3, 0.2))):
        shape = Shape(d, f, f, True, dtype, setting.device, False)
        make = functools.partial(_measure, name, shape, n, density, setting, out)
        yield from setting.rows(f"{name}, {n} tokens, two choices of {density} and {out}", make)
    yield from small_rows(setting)


def small_rows(setting: Setting) -> Iterator[Row]:
    """Time pathways of one neuron, half of them chosen: the MLP alone, and with its router, beside PyTorch's mask."""
    shapes = {"tiny": (16, 64)} if setting.dry else SHAPES
    dtype = "float32" if setting.dry else "bfloat16"
    plans = ((20, False),) if setting.dry else ((1, False), (4, False), (2048, False), (2048, True))
    for (n, training), (name, (d, f)) in itertools.product(plans, shapes.items()):
        shape = Shape(d, f, f, True, dtype, setting.device, training)
        make = functools.partial(_small, name, shape, n, setting)
        yield from setting.rows(f"{f} pathways of {name}, {n} tokens", make)


def _small(name: str, shape: Shape, n: int, setting: Setting) -> Iterator[Row]:
    runs: dict[str, list[Callable[[], object]]] = {}
    for seed in range(8 if n <= GPU_TOKENS else 1):
        call = random_call(shape, n, DENSITIES[0], "silu", seed)
        assert call.W_gate is not None
        W_out_t = call.W_out.detach().t().contiguous().requires_grad_(shape.training)
        with torch.set_grad_enabled(shape.training):
            whole = kernels.routed(call, kernels.random_router(shape, DENSITIES[0], seed), "auto")
        made: dict[str, Callable[[], Tensor]] = {
            "dense": functools.partial(dense_swiglu, call.x, call.W_in, call.W_gate, W_out_t),
            "masked": functools.partial(routed_mlp, call, "dense"),
            "auto": functools.partial(routed_mlp, call, "auto", DENSITIES[0]),
            "routed": whole,
        }
        for run, forward in made.items():
            runs.setdefault(run, []).append(one_pass(call, shape, forward, [W_out_t] * shape.training))
    timed, at_once = arrange(runs, shape, n)
    us = {run: spread.p50 / at_once for run, spread in time_together(timed, shape.device, setting.seconds).items()}
    row: Row = {"shape": name, "d": shape.d_model, "f": shape.d_ff, "units": shape.n_pathways, "dtype": shape.dtype}
    row |= {"pass": "train" if shape.training else "forward", "tokens": n, "density": DENSITIES[0]}
    yield row | {"router": "mlp"} | {f"{run} µs": round(value, 1) for run, value in us.items()}


def rival_rows(setting: Setting) -> Iterator[Row]:
    """`benchmarks.kernels` on 16 pathways: PyTorch's grouped_mm, and ScatterMoE where it is installed."""
    if not kernels.scattermoe_runs(setting.device):
        yield {"left_out": "ScatterMoE", "why": "it needs a GPU" if setting.dry else "it is not installed"}
    dtype = "float32" if setting.dry else "bfloat16"
    speeds: list[tuple[float, float]] = []
    backend = "grouped" if setting.dry else "auto"
    shapes = {"tiny": (16, 64)} if setting.dry else SHAPES
    tokens = ((4, False),) if setting.dry else ((1, False), (2048, False), (8192, False), (2048, True))
    for (n, training), (name, (d, f)), density in itertools.product(tokens, shapes.items(), DENSITIES[-1:]):
        shape = Shape(d, f, kernels.PATHWAYS, True, dtype, setting.device, training)

        def make(name: str = name, shape: Shape = shape, n: int = n, density: float = density) -> Iterator[Row]:
            if not speeds:
                speeds.append((1.0, 1.0) if setting.dry else kernels.limits(setting.device, dtype))
            try:
                yield kernels.measure(name, shape, n, density, setting.seconds, False, backend, speeds[0])
            except SystemExit as failure:  # of parity
                yield {"shape": name, "tokens": n, "ok": False, "error": str(failure)}

        yield from setting.rows(f"pathways of {name}, {n} tokens", make)
