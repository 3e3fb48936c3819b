"""Measures routed MLPs against dense ones: `python -m benchmarks.kernels` (see docs/benchmarks.md for kept results).

Every line gives one shape, number of tokens, density and direction; all alternatives take turns:

dense        the plain MLP, the faster of W_out stored as [d, f] and neuron-major; with --compile, and always on a
             GPU, also compiled
masked       the reference: all neurons computed, then weighted
grouped_mm   pairs gathered, `torch.nn.functional.grouped_mm`, summed by `embedding_bag` (on a GPU bfloat16 alone)
scattermoe   ScatterMoE, if it is installed, on a GPU
auto         `kernels.routed_mlp` with gates and choices given, or the backend that --backend names
routed       the router (two linear layers, hidden 128), its choice and the MLP, as a routed model executes them: in one
             fused call where that pays, else by operations of PyTorch and `kernels.routed_mlp`

Times are µs (20th, 50th and 80th percentile). On a CPU they are processor time with one thread, wall time with several.
On a GPU they are taken between events, after the second cache is overwritten. Forward passes of up to 16 tokens run as
one CUDA graph over several sets of weights, except masked, grouped_mm and scattermoe, which may wait for the host.
speedup: the faster dense over routed, medians; roofline: the larger of bytes over copy bandwidth and operations over
matrix speed, both measured first, as a share of auto's median; error: of auto's output against the reference, relative
to its largest number. No line is printed if output or gradients of auto or of routed miss the reference.
"""

import argparse
import csv
import functools
import importlib.util
import itertools
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version

import torch
from torch import Tensor

from benchmarks.kernel_parity import TOLERANCE, decided, parity
from benchmarks.kernel_rivals import dense_mlp, grouped_mm, scattermoe, scattermoe_runs
from slms.kernels.backends import BACKENDS, GPU_TOKENS, refusal
from slms.kernels.calibrate import one_pass
from slms.kernels.call import Call, Layer
from slms.kernels.costs import Shape, machine
from slms.kernels.dispatch import explain, fuses, prepare_fused, routed_mlp
from slms.kernels.reference import routed_mlp_reference
from slms.kernels.router import Router, choose
from slms.kernels.timing import Spread, graphed, random_call, time_together

# d_model, d_ff, gated; layers of models in use, and the embedded one.
SHAPES = {
    "stories-1m": (64, 256, False),
    "pythia-70m": (512, 2048, False),
    "pythia-410m": (1024, 4096, False),
    "pythia-1.4b": (2048, 8192, False),
    "pythia-6.9b": (4096, 16384, False),
    "llama-8b": (4096, 14336, True),
}
CACHES = 64 << 20  # weights of this many bytes are taken in rotation, so that they come from memory as in a whole model
WAITING = ("masked", "grouped_mm", "scattermoe")  # no CUDA graph can hold them
PATHWAYS, HIDDEN = 16, 128
COLUMNS = (
    "shape dtype pass tokens density backend auto_p50 routed_p20 routed_p50 routed_p80 dense_p50 masked_p50 "
    "grouped_mm_p50 scattermoe_p50 speedup ideal GB/s TFLOP/s roofline error"
).split()


def rotating(runs: list[Callable[[], object]], first: int = 0) -> Callable[[], object]:
    """Call the runs in turn; alternatives begin at different runs, or each would find its weights in the caches."""
    turns = itertools.cycle(runs[first % len(runs) :] + runs[: first % len(runs)])
    return lambda: next(turns)()


def arrange(
    runs: dict[str, list[Callable[[], object]]], shape: Shape, n_tokens: int
) -> tuple[dict[str, Callable[[], object]], int]:
    """The functions to time, from lists with one call for each set of weights, and the number of calls in each."""
    if shape.device == "cpu":
        return {name: rotating(calls, turn) for turn, (name, calls) in enumerate(runs.items())}, 1

    def whole(name: str, calls: list[Callable[[], object]]) -> Callable[[], object]:
        def run() -> object:
            return [call() for call in calls]

        return graphed(run) if n_tokens <= GPU_TOKENS and not shape.training and name not in WAITING else run

    return {name: whole(name, calls) for name, calls in runs.items()}, len(next(iter(runs.values())))


def random_router(shape: Shape, density: float, seed: int) -> Router:
    """A router of a routed model's form whose choices are spread evenly."""
    there = torch.device(shape.device)
    generator = torch.Generator(there).manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*size, generator=generator, device=there) * scale
        return values.to(getattr(torch, shape.dtype)).requires_grad_(shape.training)

    d, p, k = shape.d_model, shape.n_pathways, max(1, round(density * shape.n_pathways))
    first = normal(HIDDEN, d, scale=d**-0.5), normal(HIDDEN, scale=0.1)
    bias = torch.zeros(p, device=shape.device, dtype=getattr(torch, shape.dtype))
    return Router(*first, normal(p, HIDDEN, scale=HIDDEN**-0.5), normal(p, scale=0.1), bias, k, "sigmoid", None)


def routed(call: Call, router: Router, backend: str) -> Callable[[], Tensor]:
    """A function that runs router, choice and MLP."""
    p = call.chosen.shape[1]
    if (fused := fuses(call.x, call.W_in, router.k / p, p, call.W_gate is not None, backend)) is not None:
        run = prepare_fused(Layer(router, *call.weights, None, None, call.offsets, call.activation))
        return lambda: run(call.x, fused)

    def separately() -> Tensor:
        gates, chosen = choose(call.x, router)
        return routed_mlp(call._replace(gates=gates, chosen=chosen), backend)

    return separately


def limits(device: str, dtype: str) -> tuple[float, float]:
    """Bytes per µs of a large copy (read and written) and operations per µs of a large matrix product, here."""
    kind = getattr(torch, dtype)
    source = torch.ones(CACHES // 4 * (1 if device == "cpu" else 16), device=device)
    target = torch.empty_like(source)
    side = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    runs = {"copy": lambda: target.copy_(source), "product": lambda: a @ b}
    times = time_together(runs, device, 0.5)
    return 2 * source.numel() * 4 / times["copy"].p20, 2 * side**3 / times["product"].p20


def measure(
    name: str,
    shape: Shape,
    n_tokens: int,
    density: float,
    seconds: float,
    compiled: bool,
    backend: str,
    speeds: tuple[float, float],
) -> dict[str, object]:
    """Measure one line of the table."""
    activation = "silu" if shape.gated else "gelu_new"
    size = torch.empty(0, dtype=getattr(torch, shape.dtype)).element_size()
    weights = (3 if shape.gated else 2) * shape.d_model * shape.d_ff
    enough = 8 if shape.device != "cpu" else max(1, min(8, CACHES // (weights * size)))
    copies = range(enough if n_tokens <= GPU_TOKENS else 1)
    calls = [random_call(shape, n_tokens, density, activation, seed) for seed in copies]
    runs: dict[str, list[Callable[[], object]]] = {}

    def add(rival: str, forward: Callable[[Call, int], tuple[Callable[[], Tensor], list[Tensor]]]) -> None:
        prepared = [forward(call, seed) for seed, call in enumerate(calls)]
        runs[rival] = [one_pass(call, shape, *made) for call, made in zip(calls, prepared, strict=True)]

    def usual(mlp: Callable[..., Tensor]) -> Callable[[Call, int], tuple[Callable[[], Tensor], list[Tensor]]]:
        def forward(call: Call, seed: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
            transposed = call.W_out.detach().t().contiguous().requires_grad_(shape.training)
            return functools.partial(mlp, call, transposed), [transposed] * shape.training

        return forward

    def with_router(call: Call, seed: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
        router = random_router(shape, density, seed)
        with torch.set_grad_enabled(shape.training):
            run = routed(call, router, backend)
        return run, [t for t in router if isinstance(t, Tensor) and t.requires_grad]

    first = calls[0]
    reference = functools.partial(routed_mlp_reference, first)
    error = parity(functools.partial(routed_mlp, first, backend), reference, first.leaves, shape)

    routers = (random_router(shape, density, seed) for seed in itertools.count())
    router = next(made for made in routers if decided(first.x, made).any())

    def separate() -> Tensor:
        gates, chosen = choose(first.x, router)
        return routed_mlp_reference(first._replace(gates=gates, chosen=chosen))

    with torch.set_grad_enabled(shape.training):
        leaves = first.leaves + [t for t in router if isinstance(t, Tensor) and t.requires_grad]
        parity(routed(first, router, backend), separate, leaves, shape, decided(first.x, router))
    add("auto", lambda call, _: (functools.partial(routed_mlp, call, backend), []))
    add("dense", usual(dense_mlp))
    add("routed", with_router)
    add("dense, neuron-major", lambda call, _: (functools.partial(dense_mlp, call, None), []))
    add("masked", lambda call, _: (functools.partial(routed_mlp, call, "reference"), []))
    if shape.device == "cpu" or shape.dtype == "bfloat16":
        add("grouped_mm", lambda call, _: grouped_mm(call))
    if scattermoe_runs(shape.device):
        add("scattermoe", lambda call, _: scattermoe(call))
    if compiled or shape.device != "cpu":
        torch.compiler.reset()  # or a limit of recompilations, shared by all lines, would end compilation in silence
        add("dense, compiled", usual(torch.compile(dense_mlp)))
    timed, at_once = arrange(runs, shape, n_tokens)
    totals = time_together(timed, shape.device, seconds)
    times = {rival: Spread(*(value / at_once for value in spread)) for rival, spread in totals.items()}
    dense = min(spread.p50 for run, spread in times.items() if run.startswith("dense"))
    auto = times["auto"]
    read = 1 - (1 - density) ** n_tokens
    bytes_read = read * weights * size * (3 if shape.training else 1)
    operations = density * 2 * n_tokens * weights * (3 if shape.training else 1)
    bound = max(bytes_read / speeds[0], operations / speeds[1])
    said = explain(
        n_tokens,
        shape.d_model,
        calls[0].offsets,
        density,
        gated=shape.gated,
        training=shape.training,
        dtype=getattr(torch, shape.dtype),
        device=shape.device,
    )
    cells = (
        name,
        shape.dtype,
        "train" if shape.training else "forward",
        n_tokens,
        density,
        said.split()[0] if backend == "auto" else backend,
        _us(auto.p50),
        *map(_us, times["routed"]),
        _us(dense),
        *(_us(times[rival].p50) if rival in times else "" for rival in WAITING),
        f"{dense / times['routed'].p50:.2f}",
        f"{1 / density:.2f}",
        f"{bytes_read / auto.p50 / 1e3:.1f}",
        f"{operations / auto.p50 / 1e6:.3f}",
        f"{bound / auto.p50:.0%}",
        f"{error:.0e}",
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _us(time: float) -> str:
    return f"{time:.1f}" if time < 100 else f"{time:.0f}"


def table(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    speeds = {dtype: limits(arguments.device, dtype) for dtype in arguments.dtypes}
    for dtype, (copy, product) in speeds.items():
        print(f"# {dtype}: copies {copy / 1e3:.1f} GB/s, products {product / 1e6:.3f} TFLOP/s", file=sys.stderr)
    for name, dtype, density in itertools.product(arguments.shapes, arguments.dtypes, arguments.densities):
        d, f, gated = SHAPES[name]
        for tokens, training in [(n, False) for n in arguments.tokens] + [(n, True) for n in arguments.training]:
            shape = Shape(d, f, PATHWAYS, gated, dtype, arguments.device, training)
            yield measure(
                name, shape, tokens, density, arguments.seconds, arguments.compile, arguments.backend, speeds[dtype]
            )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["stories-1m", "pythia-70m", "pythia-410m"])
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=["float32"])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.25])
    parser.add_argument("--tokens", nargs="*", type=int, default=[1, 8, 128, 1024], help="forward passes")
    parser.add_argument("--training", nargs="*", type=int, default=[2048], help="forward and backward passes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for one line, at least five rounds")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the dense MLP as another rival")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs the routed MLPs")
    parser.add_argument("--csv", help="also write the table to this file")
    arguments = parser.parse_args(argv)
    if any(not 0 < density <= 1 for density in arguments.densities):
        parser.error(f"--densities is {arguments.densities}; each must be above 0 and at most 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda; no CUDA device is available")
    for dtype in arguments.dtypes:
        if (why := refusal(arguments.backend, arguments.device, getattr(torch, dtype))) is not None:
            parser.error(f"--backend is {arguments.backend}; {why}")
    torch.set_num_threads(arguments.threads)
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in ("triton", "scattermoe") if importlib.util.find_spec(name)]
    print(f"# {' | '.join([machine(arguments.device), *versions])}", file=sys.stderr)
    lines: list[dict[str, object]] = []
    for line in table(arguments):
        if not lines:
            print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
        lines.append(line)
        print("| " + " | ".join(str(cell) for cell in line.values()) + " |", flush=True)
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
