"""Models that decode with and without the compiled step, for the tests of both."""

import copy

import torch

from slms.models.convert import route
from slms.models.decode_step import speed_up
from slms.models.transformers_internals import CACHE, compute_again
from slms.routing import RoutingConfig
from tests.models.conftest import D_FF

SERVED = ("llama", "mistral", "qwen2", "qwen3")
KINDS = {
    "dense": None,
    "neurons": dict(router="gate", n_pathways=D_FF, k=D_FF // 3),
    "twice": dict(router="gate", n_pathways=D_FF, k=D_FF // 2, k_out=D_FF // 4),
    "thresholds": dict(router="gate", n_pathways=D_FF, k=D_FF // 2, k_out=D_FF // 4, rule="controlled"),
    "screened": dict(router="gate", n_pathways=D_FF, k=D_FF // 3, k_out=D_FF // 4, rule="controlled"),
    "units": dict(router="gate", n_pathways=4, k=2, n_shared=1, every_n_layers=2),
    "router": dict(n_pathways=4, k=2),
    "shared": dict(router="linear", router_bias=False, gate="softmax", n_pathways=4, k=3, n_shared=1, first_layer=1),
}


def pair(build, draw, family, kind="dense"):
    model = build(family)
    model.config.sliding_window = None
    if KINDS[kind] is not None:
        with torch.enable_grad():
            model = route(model, RoutingConfig(**{"every_n_layers": 1, **KINDS[kind]}), draw(4, 16)).eval()
    return model, speed_up(copy.deepcopy(model))


def decode(model, ids, prompt=4, **arguments):
    """Logits of every token behind the prompt, one at a time."""
    out = model(ids[:, :prompt], use_cache=True)
    logits = []
    for i in range(prompt, ids.shape[1]):
        out = model(ids[:, i : i + 1], use_cache=True, **{CACHE: out[CACHE]}, **arguments)
        logits.append(out.logits)
    return torch.cat(logits, 1)


def gradients_twice(model, ids):
    """All gradients [n] of a loss on ids [b, t], without and with layers computed again in the backward pass."""
    found = []
    for recompute in (False, True):
        if recompute:
            compute_again(model)
        model.train().zero_grad()
        model(ids).logits.square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return found
