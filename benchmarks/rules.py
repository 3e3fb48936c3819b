"""Times a model under every training-free rule beside the dense one, all in turns: `python -m benchmarks.rules`.

Every rule is forced, so that what is measured is where it breaks even (`slms.models.dynamic.break_even`). One token
goes through the first layers of the model, without its head, each model by `slms.speed_up`; several go through the MLPs
alone, where the dense ones are PyTorch's. Numbers are times of dense over times of the rule, of medians.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from slms.kernels.timing import time_together
from slms.models.base import load_base
from slms.models.calibration import layer_inputs
from slms.models.decode_step import speed_up
from slms.models.dynamic import RULES, apply_rule, force_rules, set_densities
from slms.models.transformers_internals import CACHE

PROMPT = 32  # tokens


def first_layers(base: str, n_layers: int) -> tuple[PreTrainedModel, torch.Tensor]:
    """The first layers of a Llama-like model as a model, and random tokens [8, 256] that calibrate its rules."""
    model: Any = load_base(base).model
    model.model.layers = model.model.layers[:n_layers]
    model.config.num_hidden_layers = n_layers
    g = torch.Generator().manual_seed(0)
    return model.eval(), torch.randint(3, model.config.vocab_size, (8, 256), generator=g)


def one_token(model: Any, ids: torch.Tensor) -> Callable[[], object]:
    """A decoding step of the stack alone after 64 tokens; the cache is cropped back."""
    cache = model(ids[:1, :64], use_cache=True, logits_to_keep=1)[CACHE]

    def step() -> None:
        model.model(input_ids=ids[:1, 64:65], use_cache=True, **{CACHE: cache})
        cache.crop(-1)

    return step


def mlps(model: Any, inputs: list[torch.Tensor], n_tokens: int) -> Callable[[], object]:
    """All MLPs on their own inputs [n, d] of as many sequences of one token; under `griffin`, after prompts."""
    modules = [layer.mlp for layer in model.model.layers]
    for mlp, x in zip(modules, inputs, strict=True):
        mlp(x[: PROMPT * n_tokens].unflatten(0, (n_tokens, PROMPT)))
    last = [x[-n_tokens:, None].contiguous() for x in inputs]
    return lambda: [mlp(x) for mlp, x in zip(modules, last, strict=True)]


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Print one line for each density and number of tokens."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rules", description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--density", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--rule", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each line")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    dense, ids = first_layers(args.base, args.layers)
    inputs = [x for _, x in layer_inputs(dense, list(range(args.layers)), ids)]
    models = {"dense": dense} | {rule: apply_rule(dense, rule, ids) for rule in args.rule}
    for model in models.values():
        speed_up(model)
        force_rules(model)
    for density in args.density:
        for model in models.values():
            set_densities(model, density)
        for n in args.tokens:
            runs = {name: one_token(model, ids) if n == 1 else mlps(model, inputs, n) for name, model in models.items()}
            times = time_together(runs, "cpu", args.seconds)
            of = times.pop("dense").p50
            cells = " ".join(f"{name} {of / spread.p50:.2f}" for name, spread in times.items())
            print(f"density {density:g}, {n} tokens, dense {of / args.layers:.0f} µs a layer: {cells}", flush=True)


if __name__ == "__main__":
    main()
