"""Times an optimizer step of routed models beside one of their dense base: `python -m benchmarks.training_step`.

The steps take turns; each runs forward, backward and AdamW through the whole model with its head, on random tokens with
learning rate 0. `smollm2-135m` is routed as three of the configs, the others by default (every second layer, 4 of 16
pathways). `pythia-70m` is that model's shape with random weights and a vocabulary small enough that the head does not
hide the layers. `--static` adds the dense model cut down to a share of its neurons, the control at equal FLOPs;
its weights are random, which takes as long. Thresholds are set on the tokens of the step; the share of a model's units
that run, and of those that go through W_out, is a mean over routed layers.
"""

import argparse
import dataclasses
from collections.abc import Mapping

import torch
import yaml
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from slms.files import CONFIGS
from slms.kernels.costs import machine
from slms.kernels.timing import Spread, time_together
from slms.lit.optim import Trained, train_only
from slms.models.anatomy import find_mlps
from slms.models.base import load_base
from slms.models.convert import route
from slms.models.cut import with_fresh_widths
from slms.models.densities import set_thresholds
from slms.models.routed import record_routes
from slms.models.weights import read_mlp
from slms.routing import RoutingConfig

MODELS = ("stories-1m", "pythia-70m", "smollm2-135m")
SMOLLM2 = ("routed_smollm2", "routed_smollm2_fast", "routed_smollm2_stock")


def dense_model(name: str, vocabulary: int = 2048) -> PreTrainedModel:
    """Make one of `MODELS`; `vocabulary` applies to the `pythia-70m` shape."""
    if name != "pythia-70m":
        return load_base(name).model
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=2048,
    )
    return GPTNeoXForCausalLM(config)


def routings(name: str) -> dict[str, RoutingConfig]:
    """How a model is routed: as in the configs made for it, else by default."""
    if name != "smollm2-135m":
        return {"routed": RoutingConfig()}
    read = {config: yaml.safe_load((CONFIGS / f"{config}.yaml").read_text()) for config in SMOLLM2}
    return {config: RoutingConfig(**options["model"]["routing"]) for config, options in read.items()}


def routed_on(dense: PreTrainedModel, config: RoutingConfig, ids: Tensor) -> PreTrainedModel:
    """Route a model by the first block of ids [b, t], without what costs time and is for quality alone.

    Thresholds are set on all of ids, as they reach each layer.
    """
    cheap = dataclasses.replace(config, partition="random", importance="norm", refit=False)
    model = route(dense, cheap, ids[:1])
    if config.rule == "controlled":
        set_thresholds(model, None, ids, len(ids))
    return model


@torch.no_grad()
def shares(model: PreTrainedModel, ids: Tensor) -> tuple[float, float]:
    """The mean share of units that run for the tokens of ids [b, t], and of those that go through W_out."""
    with record_routes(model) as routes:
        model.base_model(ids, use_cache=False)
    ran = [found.chosen.float().mean() for found in routes.values()]
    out = [
        share if found.through is None else found.through.float().mean() / found.chosen.shape[1]
        for found, share in zip(routes.values(), ran, strict=True)
    ]
    return torch.stack(ran).mean().item(), torch.stack(out).mean().item()


def compare_steps(
    dense: PreTrainedModel,
    configs: Mapping[str, RoutingConfig],
    batch_size: int,
    block_size: int,
    seconds: float,
    dtypes: tuple[str, ...] = ("float32",),
    trained: Trained = "mlps",
    shares_kept: tuple[float, ...] = (),
) -> tuple[dict[str, dict[str, Spread]], dict[str, tuple[float, float]]]:
    """Time a step, in µs, of the dense model, of it routed as configured, and cut to shares of its neurons, in turns.

    Returns the times by dtype and name, and each routed model's `shares` in fp32. Types but float32 are by autocast.
    """
    ids = torch.randint(3, dense.config.vocab_size, (batch_size, block_size))

    def step(model: PreTrainedModel, dtype: str):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, fused=True)

        def run() -> None:
            with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
                loss = model(ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    models = {"dense": dense} | {name: routed_on(dense, config, ids) for name, config in configs.items()}
    found = {name: shares(models[name], ids) for name in configs}
    widths = {i: len(read_mlp(mlp).W_in) for i, mlp in find_mlps(dense).items()}
    for share in shares_kept:
        few = {i: max(1, round(share * width)) for i, width in widths.items()}
        models[f"static {share:.0%}"] = with_fresh_widths(dense, few)[0]
    for model in models.values():
        train_only(model.train(), trained)
    times = {
        dtype: time_together({name: step(model, dtype) for name, model in models.items()}, "cpu", seconds)
        for dtype in dtypes
    }
    return times, found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--train", choices=("all", "mlps"), default="mlps", help="what changes; the rest is frozen")
    parser.add_argument("--static", nargs="*", type=float, default=[], metavar="SHARE", help="of the neurons that stay")
    parser.add_argument("--batch_size", type=int, default=8, help="blocks of a step")
    parser.add_argument("--block_size", type=int, default=256, help="tokens of a block")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each model and type, at least five rounds")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sizes = arguments.batch_size, arguments.block_size
    print(f"{machine('cpu')}; {sizes[0]} × {sizes[1]} tokens, {arguments.train} trained, ms (20th, 50th percentile)")
    for name in arguments.models:
        dtypes, static = tuple(arguments.dtypes), tuple(arguments.static)
        times, found = compare_steps(
            dense_model(name), routings(name), *sizes, arguments.seconds, dtypes, arguments.train, static
        )
        for kind, (ran, out) in found.items():
            print(f"{name}: {kind} runs {ran:.3f}, {out:.3f} through W_out")
        for dtype, spreads in times.items():
            listing = ", ".join(f"{kind} {t.p20 / 1e3:.0f} {t.p50 / 1e3:.0f}" for kind, t in spreads.items())
            print(f"{name} {dtype}: {listing}")
            for kind in [kind for kind in spreads if kind != "dense"]:
                ratio = spreads[kind].p50 / spreads["dense"].p50
                print(f"{name} {dtype}: {kind} / dense {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
