"""Times an attention whose query heads are routed against the dense one: `python -m benchmarks.heads`.

The calls of both alternate; a row states the median of the dense time over the routed one, and its quartiles.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from slms.models.anatomy import find_attentions
from slms.models.convert import route
from slms.models.transformers_internals import CACHE
from slms.routing import RoutingConfig

Run = Callable[[], Tensor]


class Context(NamedTuple):
    """A cache of keys and values [b, g, t, e] that a call reads and does not change."""

    keys: Tensor
    values: Tensor

    def update(self, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


def arms(
    d: int,
    heads: int,
    groups: int,
    t: int,
    k: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    decoded: int = 0,
) -> tuple[Run, Run]:
    """The dense attention of a Llama and the same with k heads of each group, on one random prompt of t tokens.

    decoded: blocks that each decode one token with a context of t, instead of the prompt.
    """
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=d,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=t,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    routing = RoutingConfig(target="attention", k_heads=k, router="linear", every_n_layers=1, mean_compensation=True)
    routed = route(model, routing, torch.randint(0, 64, (2, min(t, 64)))).eval()
    x = torch.randn(decoded or 1, 1 if decoded else t, d).to(device, dtype)
    for one in (model, routed):
        one.to(device, dtype)
    position = torch.tensor([[t - 1]]) if decoded else torch.arange(t)[None]
    more: dict[str, object] = {"position_embeddings": model.model.rotary_emb(x, position_ids=position.to(device))}
    if decoded:
        more[CACHE] = Context(*torch.randn(2, decoded, groups, t, d // heads).to(device, dtype))

    def run(attention: nn.Module) -> Tensor:
        return attention(hidden_states=x, attention_mask=None, **more)[0]

    return tuple(partial(run, find_attentions(one)[0]) for one in (model, routed))  # type: ignore[return-value]


def seconds(dense: Run, routed: Run, calls: int, backward: bool) -> list[tuple[float, float]]:
    """The times of dense and routed calls in turns, after two of each that do not count."""
    found: list[tuple[float, float]] = []
    for _ in range(calls + 2):
        pair = []
        for run in (dense, routed):
            start = time.perf_counter()
            y = run()
            if backward:
                y.sum().backward()
            pair.append(time.perf_counter() - start)
        found.append((pair[0], pair[1]))
    return found[2:]


def main(args: list[str] | None = None) -> None:
    """Print one row for each number of heads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--backward", action="store_true")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    for k in options.k:
        dense, routed = arms(options.d, options.heads, options.groups, options.tokens, k)
        with torch.set_grad_enabled(options.backward):
            pairs = seconds(dense, routed, options.calls, options.backward)
        low, middle, high = statistics.quantiles([one / other for one, other in pairs], n=4)
        ms = [1e3 * statistics.median(times) for times in zip(*pairs, strict=True)]
        share = k * options.groups / options.heads
        print(f"{share:.0%} of heads: dense {ms[0]:.0f} ms, routed {ms[1]:.0f} ms, ", end="")
        print(f"{middle:.2f}x [{low:.2f}, {high:.2f}]", flush=True)


if __name__ == "__main__":
    main()
