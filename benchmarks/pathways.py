"""What many pathways cost: `python -m benchmarks.pathways` (docs/benchmarks.md keeps its table).

Every row is one selector and one number of pathways P of a SwiGLU MLP, of which a token runs a share. All alternatives
of a row take turns, one thread, float32; times are medians of processor time. For one token, weights lie in several
copies that are used in rotation, so that they come from memory as in a whole model.

choice    router and selection alone, for one token, as a call of its own, whose start in Python the routed MLP does not
          pay; `gate` has no router: its gate matrix runs whole, and its selection is part of `decode`
share     choice over the dense MLP's time for one token
decode    the routed MLP over the dense one, for one token
prompt    the same for a prompt, which may run dense and masked where that is faster
seconds   processor time of a conversion, and its peak memory above that of the dense model: one layer of a Llama of
          this shape with random weights, on random calibration tokens

The dense MLP is the fastest of PyTorch's with W_out as [d, f], the same neuron-major and, for one token, the compiled
loops that routed MLPs run in.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.kernel_rivals import dense_mlp
from benchmarks.kernels import CACHES, rotating
from slms.kernels import Call, Layer, Router, prepare_fused
from slms.kernels.costs import machine
from slms.kernels.cpu.fused import FusedMLP
from slms.kernels.timing import time_together
from slms.models.convert import route
from slms.models.routed import set_ramp
from slms.models.routed_mlp import RoutedMLP
from slms.routing import PathwayRouter, RoutingConfig

ROUTERS = ("linear", "mlp", "low_rank", "gate")
COLUMNS = "P | k | router | choice µs | share | decode | prompt | seconds | MiB".split(" | ")
BLOCK = 256  # calibration tokens in a row
MOST_COPIES = 32  # an MLP that needs more to fill the caches stays in them in a whole model too
Run = Callable[[], object]


def routing(router: str, p: int, options: argparse.Namespace) -> RoutingConfig:
    """The configuration of a row; `low_rank` is an `mlp` router of few hidden units."""
    names = {"router": "mlp", "router_hidden": options.rank} if router == "low_rank" else {"router": router}
    return RoutingConfig(n_pathways=p, k=max(1, round(options.density * p)), every_n_layers=1, **names)


def random_mlp(config: RoutingConfig, d: int, f: int, seed: int) -> RoutedMLP:
    """A routed SwiGLU MLP whose weights, also the router's, are random."""
    torch.manual_seed(seed)
    shape = {"activation": "silu", "layer_index": 0, "gated": True, "bias_in": False, "bias_out": False}
    mlp = RoutedMLP(d, f, config, **shape).eval().requires_grad_(False)  # type: ignore[arg-type]
    set_ramp(mlp, 1.0)
    mlp.interleave()
    return mlp


def choice(mlp: RoutedMLP, x: Tensor) -> Run | None:
    """A call of router and selection alone, if there is a router."""
    router = mlp.router
    weights = mlp.W_in, mlp.b_in, mlp.W_gate, mlp.b_gate, mlp.W_out
    if not isinstance(router, PathwayRouter):
        return None
    W_hidden, b_hidden = (None, None) if router.hidden is None else (router.hidden.weight, router.hidden.bias)
    W, b = router.out.weight, router.out.bias
    scorer = Router(W_hidden, b_hidden, W, b, router.selection_bias, mlp.k, router.gate, router.ramp)
    fused = prepare_fused(Layer(scorer, *weights, None, None, mlp.offsets, mlp.activation))
    assert isinstance(fused, FusedMLP), fused
    return partial(fused.choose, x)


def arms(config: RoutingConfig, options: argparse.Namespace, n: int) -> dict[str, Run]:
    """The alternatives for n tokens; those for one token rotate through copies of the weights."""
    d, f = options.d, options.d_ff
    copies = min(max(1, CACHES // (12 * d * f)), MOST_COPIES) if n == 1 else 1
    whole = RoutingConfig(n_pathways=1, k=1, router="linear", gate="unit")
    runs: dict[str, list[Run]] = {}
    for seed in range(copies):
        mlp, x = random_mlp(config, d, f, seed), torch.randn(n, d)
        assert mlp.W_gate is not None
        W_in, W_gate, W_out = (w.contiguous() for w in (mlp.W_in, mlp.W_gate, mlp.W_out))
        call = Call(x, W_in, None, W_gate, None, W_out, x, x, mlp.offsets, mlp.activation)
        made: dict[str, Run] = {
            "routed": partial(mlp, x),
            "dense": partial(dense_mlp, call, W_out.T.contiguous()),
            "dense, neuron-major": partial(dense_mlp, call, None),
        }
        if n == 1:
            made["dense, loops"] = partial(random_mlp(whole, d, f, seed), x)
            if (alone := choice(mlp, x)) is not None:
                made["choice"] = alone
        for name, run in made.items():
            runs.setdefault(name, []).append(run)
    return {name: rotating(calls, turn) for turn, (name, calls) in enumerate(runs.items())}


def medians(config: RoutingConfig, options: argparse.Namespace, n: int) -> dict[str, float]:
    """The median µs of routed and dense MLPs and, for one token, of the choice."""
    times = time_together(arms(config, options, n), "cpu", options.seconds)
    dense = min(spread.p50 for name, spread in times.items() if name.startswith("dense"))
    return {name: times[name].p50 for name in ("routed", "choice") if name in times} | {"dense": dense}


def memory(field: str) -> float:
    """A number of MiB that Linux keeps of this process: VmRSS now, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def conversion(config: RoutingConfig, options: argparse.Namespace) -> tuple[float, float]:
    """Processor seconds and the peak of memory in MiB of converting one layer with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": options.d, "intermediate_size": options.d_ff, "num_attention_heads": options.d // 64 or 1}
    llama = LlamaConfig(vocab_size=512, num_hidden_layers=1, max_position_embeddings=BLOCK, **sizes)
    model = LlamaForCausalLM(llama).eval()
    tokens = torch.randint(0, 512, (max(1, options.calibration // BLOCK), BLOCK))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before, start = memory("VmRSS"), time.process_time()
    route(model, config, tokens)
    return time.process_time() - start, memory("VmHWM") - before


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    for router in options.routers:
        for p in options.pathways:
            config = routing(router, p, options)
            one, many = (medians(config, options, n) for n in (1, options.prompt))
            alone = one.get("choice")
            cells = [
                str(p),
                str(config.k),
                router,
                *(["", ""] if alone is None else [f"{alone:.0f}", f"{alone / one['dense']:.1%}"]),
            ]
            cells += [f"{times['routed'] / times['dense']:.2f}" for times in (one, many)]
            if options.calibration:
                seconds, peak = conversion(config, options)
                cells += [f"{seconds:.1f}", f"{peak:.0f}"]
            yield cells


def main(argv: list[str] | None = None) -> None:
    """Print one row for each selector and number of pathways."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pathways", description=__doc__.splitlines()[0])
    parser.add_argument("--pathways", type=int, nargs="+", default=[16, 48, 96, 192, 384, 768, 1536])
    parser.add_argument("--routers", nargs="+", choices=ROUTERS, default=ROUTERS)
    parser.add_argument("--rank", type=int, default=32, help="hidden units of `low_rank`; `mlp` has 128")
    parser.add_argument("--density", type=float, default=0.5, help="share of the pathways that a token runs")
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--d_ff", type=int, default=1536)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for one token, and for the prompt")
    parser.add_argument("--calibration", type=int, default=8192, help="tokens of a conversion; 0 leaves it out")
    options = parser.parse_args(argv)
    if wrong := [p for p in options.pathways if not 1 <= p <= options.d_ff]:
        parser.error(f"--pathways is {wrong[0]}; it must be from 1 to --d_ff ({options.d_ff})")
    if not 0 < options.density <= 1:
        parser.error(f"--density is {options.density}; it must be above 0 and at most 1")
    torch.set_num_threads(1)
    print(f"# {machine('cpu')}")
    columns = COLUMNS if options.calibration else COLUMNS[:-2]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    with torch.no_grad():
        for row in rows(options):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
