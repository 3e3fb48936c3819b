"""Times an optimizer step of a routed model beside one of its dense base: `python -m benchmarks.training_step`.

The steps take turns; each runs forward, backward and AdamW through the whole model with its head, with default routing
(every second layer, 4 of 16 pathways), random tokens and learning rate 0. `pythia-70m` is that model's shape with
random weights and a vocabulary small enough that the head does not hide the layers.
"""

import argparse

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from slms.kernels.costs import machine
from slms.kernels.timing import Spread, time_together
from slms.models.base import load_base
from slms.models.convert import route
from slms.routing import RoutingConfig

MODELS = ("stories-1m", "pythia-70m")


def dense_model(name: str, vocabulary: int = 2048) -> PreTrainedModel:
    """Make one of `MODELS`; `vocabulary` applies to the `pythia-70m` shape."""
    if name == "stories-1m":
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


def compare_steps(
    dense: PreTrainedModel, config: RoutingConfig, batch_size: int, block_size: int, seconds: float
) -> dict[str, Spread]:
    """Time a step, in µs, of the dense model and of the one routed as configured, in at least five rounds."""
    ids = torch.randint(3, dense.config.vocab_size, (batch_size, block_size))

    def step(model: PreTrainedModel):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

        def run() -> None:
            model(ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    models = {"dense": dense.train(), "routed": route(dense, config, ids).train()}
    return time_together({name: step(model) for name, model in models.items()}, "cpu", seconds)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--batch_size", type=int, default=8, help="blocks of a step")
    parser.add_argument("--block_size", type=int, default=256, help="tokens of a block")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each model, at least five rounds")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{machine('cpu')}; {arguments.batch_size} × {arguments.block_size} tokens, fp32, ms (20th, 50th percentile)")
    for name in arguments.models:
        sizes = arguments.batch_size, arguments.block_size
        times = compare_steps(dense_model(name), RoutingConfig(), *sizes, arguments.seconds)
        listing = ", ".join(f"{kind} {t.p20 / 1e3:.0f} {t.p50 / 1e3:.0f}" for kind, t in times.items())
        print(f"{name}: {listing}; routed / dense {times['routed'].p50 / times['dense'].p50:.2f}", flush=True)


if __name__ == "__main__":
    main()
