"""Times attentions whose query heads are routed beside the dense ones, for `benchmarks.gpu`.

Times are medians in µs, router and means of skipped heads included; decoding is one CUDA graph for each of both.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_setting import Row, Setting
from benchmarks.heads import arms
from slms.kernels.timing import graphed, time_together

# Width, heads, groups and chosen heads of a group: of SmolLM2-135M a third and two, of Llama 3.2 1B and 3.1 8B half.
SHAPES = {
    "smollm2-135m, 1 of 3": (576, 9, 3, 1),
    "smollm2-135m, 2 of 3": (576, 9, 3, 2),
    "llama-1b, 2 of 4": (2048, 32, 8, 2),
    "llama-8b, 2 of 4": (4096, 32, 8, 2),
}
DECODE = ((1, 512), (1, 8192), (8, 2048))  # blocks, context


def _measure(name: str, tokens: int, decoded: int, training: bool, setting: Setting) -> Iterator[Row]:
    d, heads, groups, k = (24, 4, 2, 1) if setting.dry else SHAPES[name]
    dtype = torch.float32 if setting.dry else torch.bfloat16
    dense, routed = arms(d, heads, groups, tokens, k, setting.device, dtype, decoded)

    def timed(forward: Callable[[], Tensor]) -> Callable[[], object]:
        if training:
            return lambda: forward().sum().backward()
        run = torch.no_grad()(forward)
        return graphed(run) if decoded and not setting.dry else run

    runs = {"dense": timed(dense), "routed": timed(routed)}
    us = {run: spread.p50 for run, spread in time_together(runs, setting.device, setting.seconds).items()}
    row: Row = {"shape": name, "d": d, "heads": heads, "groups": groups, "k": k, "dtype": str(dtype)[6:]}
    row |= {"pass": "decode" if decoded else "train" if training else "prompt", "blocks": decoded or 1}
    row |= {"tokens" if not decoded else "context": tokens}
    yield (
        row
        | {f"{run} µs": round(value, 1) for run, value in us.items()}
        | {"dense / routed": round(us["dense"] / us["routed"], 2)}
    )


def head_rows(setting: Setting) -> Iterator[Row]:
    """Time prompts, training and decoding."""
    names = ("tiny",) if setting.dry else tuple(SHAPES)
    prompts, training = ((8,), (8,)) if setting.dry else ((512, 2048, 8192), (2048,))
    plans = [(t, 0, False) for t in prompts] + [(t, 0, True) for t in training]
    plans += [(t, b, False) for b, t in (((1, 8),) if setting.dry else DECODE)]
    for (tokens, decoded, trained), name in itertools.product(plans, names):
        make = partial(_measure, name, tokens, decoded, trained, setting)
        yield from setting.rows(f"{name}, {tokens} tokens{', decoding' * bool(decoded)}", make)
