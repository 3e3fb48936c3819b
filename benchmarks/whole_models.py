"""Times a dense model and the same one routed, here and in llama.cpp: `python -m benchmarks.whole_models`.

Some routed models are stock mixtures of experts (docs/leaving.md) with random pathways and routers, as only speed is
measured; in the others, which llama.cpp does not know, the gates choose single neurons by thresholds. In each engine
all models take turns on the same threads: slms in fp32, each routed model with the dense one, both by `slms.speed_up`
where it serves them (20th percentile); llama.cpp in F32 and Q8_0, all files (best prompt, 20th percentile of steps). A
row without a speed says why.
"""

import argparse
import copy
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from slms.kernels.costs import machine
from slms.kernels.timing import time_together
from slms.measure.gguf import time_models
from slms.measure.speed import compare_speed, one_more_token, prefill
from slms.models.base import load_base
from slms.models.convert import route
from slms.models.decode_step import speed_up
from slms.models.densities import set_thresholds
from slms.routing import RoutingConfig

COLUMNS = ("engine", "model", "decode tok/s", "× dense", "prompt tok/s", "× dense")


def routed_as(dense: PreTrainedModel, n_pathways: int, k: int) -> PreTrainedModel:
    """Route every MLP of a dense model so that it is a stock mixture of experts."""
    config = RoutingConfig(
        n_pathways=n_pathways, k=k, every_n_layers=1, partition="random", router_init="random", stock=True
    )
    return route(dense, config, torch.randint(3, dense.config.vocab_size, (1, 64))).eval()


def gate_routed(
    dense: PreTrainedModel, ids: torch.Tensor, density: float, density_out: float | None = None
) -> PreTrainedModel:
    """Let the gates of every MLP of a dense model choose this share of its neurons, `density_out` of which go on.

    They choose by thresholds, as the shipped configs have it, at which the tokens ids [1, t] run these shares.
    """
    d_ff = dense.config.intermediate_size
    k, k_out = round(density * d_ff), None if density_out is None else round(density_out * d_ff)
    config = RoutingConfig(router="gate", n_pathways=d_ff, k=k, k_out=k_out, every_n_layers=1, rule="controlled")
    model = route(dense, config, ids).eval()
    if config.k < d_ff:
        set_thresholds(model, None, ids, 1)
    return model


def rows(
    base: str, n_pathways: int, ks: list[int], densities: list[float], prompt: int, seconds: float
) -> Iterator[tuple[str, ...]]:
    """Yield the cells of `COLUMNS`; the last ones are command and build of llama.cpp."""
    opened = load_base(base)
    dense, tokenizer = opened.model.eval(), opened.tokenizer
    models = {f"{k} of {n_pathways}": routed_as(dense, n_pathways, k) for k in ks}
    ids = torch.randint(3, dense.config.vocab_size, (1, prompt))
    yield _stock(dense, ids, seconds)
    by_gate = {f"gate, {density:g}": gate_routed(dense, ids, density) for density in densities}
    shares = [(1.2 * density, 0.8 * density) for density in densities if 1.2 * density <= 1]  # as many FLOPs
    by_gate |= {f"gate twice, {into:g} and {out:g}": gate_routed(dense, ids, into, out) for into, out in shares}
    for name, model in (models | by_gate).items():
        speed = compare_speed(dense, model, ids, seconds)
        of = 1e6 / speed.decode.dense.p20, 1e6 * prompt / speed.prefill.dense.p20
        if name == next(iter(models)):
            yield _row("slms fp32", "dense", of, of)
        yield _row("slms fp32", name, (1e6 / speed.decode.other.p20, 1e6 * prompt / speed.prefill.other.p20), of)
    made = ""
    timed = time_models({"dense": dense} | models, tokenizer, prompt)
    first = {one.type: one.times for one in timed if one.model == "dense"}
    for one in timed:
        engine, dense_times = f"llama.cpp {one.type.upper()}", first[one.type] or one.times
        if one.times is None or dense_times is None:
            yield engine, one.model, one.why_not or ""
            continue
        made = f"{one.times.command.rpartition('; ')[0]}; {one.times.build}"
        of = dense_times.decode, dense_times.prompt
        yield _row(engine, one.model, (one.times.decode, one.times.prompt), of)
    if made:
        yield ("#", made)


def _stock(dense: PreTrainedModel, ids: torch.Tensor, seconds: float) -> tuple[str, ...]:
    """The dense model in transformers as it comes, in turns with itself in slms, by which its ratios are."""
    models = {"stock": copy.deepcopy(dense), "slms": speed_up(copy.deepcopy(dense))}
    with torch.inference_mode():
        decode = time_together({name: one_more_token(model, ids) for name, model in models.items()}, "cpu", seconds / 4)
        prompt = time_together(
            {name: prefill(model, ids) for name, model in models.items()},
            "cpu",
            seconds / 4,
        )
    stock, ours = ((1e6 / decode[name].p20, 1e6 * ids.shape[1] / prompt[name].p20) for name in models)
    return _row("transformers fp32", "dense", stock, ours)


def _row(engine: str, name: str, rates: tuple[float, float], dense: tuple[float, float]) -> tuple[str, ...]:
    """rates, dense: tokens/s of decoding and of the prompt."""
    cells = [f"{cell:.{n}f}" for rate, of in zip(rates, dense, strict=True) for cell, n in ((rate, 1), (rate / of, 2))]
    return engine, name, *cells


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_models", description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="a Llama, Mistral or Qwen3")
    parser.add_argument("--n_pathways", type=int, default=16)
    parser.add_argument("--k", nargs="+", type=int, default=[4, 8], help="pathways that a token runs")
    parser.add_argument(
        "--density",
        nargs="*",
        type=float,
        default=[0.5, 0.25],
        help="shares of the neurons that gates choose; up to .83 also by two choices, at the same FLOPs",
    )
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, of slms and llama.cpp alike")
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="for each routed model in slms, at least five rounds"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    try:
        print(f"# {machine('cpu')}", flush=True)
        print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
        options = (arguments.n_pathways, arguments.k, arguments.density, arguments.prompt, arguments.seconds)
        for cells in rows(arguments.base, *options):
            print("# " + cells[1] if cells[0] == "#" else "| " + " | ".join(cells) + " |", flush=True)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
