"""Measures pathways' mean outputs and norms on calibration tokens, and fits routers to them.

Shapes: n calibration tokens, d model, f neurons, p pathways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from slms.models.activations import mlp_inputs
from slms.models.weights import MLPWeights, neurons
from slms.routing import PathwayRouter

MAX_TOKENS = 65_536
"""D2DMoE-like routers gain nothing from more: notes in ``docs/log.md``."""
_MEMORY_BYTES = 2**31
_FORWARD_TOKENS = 4096
_CHUNK = 4096
_COOL_TOKENS = 1024
FACTORS = (1.0, 0.3, 0.1, 0.03)
"""Factors of scores that :func:`cool` tries. Below, an export's softmax in fp32 no longer tells close scores apart."""
_OUTLYING = 4.0


class PathwayStatistics(NamedTuple):
    """Statistics of the pathway outputs f_p(x) = h_p(x) W_out_p over calibration tokens."""

    mean: Tensor
    """[p, d]: E f_p"""
    norms: Tensor
    """[n, p]: ‖f_p(x)‖, or ‖f_p(x) − E f_p‖ if ``centred``, times the root if one is given"""


Reader = Callable[[PreTrainedModel, list[int]], AbstractContextManager[dict[int, Tensor]]]
"""What is read of layers, as the context managers of `slms.models.activations` do: {layer: [n, w]}."""


def evenly(blocks: Tensor, n_tokens: int) -> Tensor:
    """At most `n_tokens` tokens (at least one block) of blocks [b, t], as blocks that are spread evenly."""
    keep = max(1, n_tokens // blocks.shape[1])
    return blocks if len(blocks) <= keep else blocks[torch.linspace(0, len(blocks) - 1, keep).round().long()]


def layer_inputs(
    model: PreTrainedModel, layers: list[int], blocks: Tensor, read: Reader = mlp_inputs
) -> Iterator[tuple[int, Tensor]]:
    """Yield each layer's MLP inputs [n, d] over token blocks [b, t], in fp32 on the model's device.

    ``read`` may read something else in their place. As many layers as fit in 2 GiB are collected together; the model
    runs again for the others. It is in evaluation mode meanwhile. Raises ValueError if a layer's states are not finite.
    """
    blocks = evenly(blocks, MAX_TOKENS)
    group = max(1, _MEMORY_BYTES // (4 * blocks.numel() * model.config.hidden_size))
    training = model.training
    model.eval()
    try:
        for start in range(0, len(layers), group):
            chosen = layers[start : start + group]
            collected: dict[int, list[Tensor]] = {i: [] for i in chosen}
            for batch in blocks.split(max(1, _FORWARD_TOKENS // blocks.shape[1])):
                with read(model, chosen) as found:
                    model.base_model(batch.to(model.device), use_cache=False)
                for i in chosen:
                    collected[i].append(found[i].float())
            for i in chosen:
                states = torch.cat(collected.pop(i))
                if not states.isfinite().all():
                    raise ValueError(f"layer {i} of the model reads NaN or infinity on the calibration tokens")
                yield i, states
    finally:
        model.train(training)


def pathway_statistics(
    weights: MLPWeights, x: Tensor, offsets: tuple[int, ...], centred: bool, root: Tensor | None = None
) -> PathwayStatistics:
    """Compute the statistics at inputs x [n, d] for weights in pathway order."""
    return unit_statistics(lambda chunk: neurons(weights, chunk), weights.W_out, x, offsets, centred, root)


def unit_statistics(
    hidden: Callable[[Tensor], Tensor],
    W_out: Tensor,
    x: Tensor,
    offsets: Sequence[int],
    centred: bool,
    root: Tensor | None = None,
) -> PathwayStatistics:
    """Compute the statistics of pathways f_p = h_p W_out_p, where ``hidden`` maps chunks of x [n, ·] to h [n, f].

    Dropping a pathway loses f_p, or f_p − E f_p if means are compensated (``centred``). No tensor [n, p, d] is formed:
    ‖h W_out‖ = ‖h Rᵀ‖ with W_outᵀ = QR in each pathway. With a ``root`` [d, d]
    (:func:`slms.models.sensitivity.sensitivity_roots`) norms are of the outputs times it.
    """
    parts = list(pairwise(offsets))
    first = torch.zeros(offsets[-1], dtype=torch.float64, device=x.device)
    for chunk in x.split(_CHUNK):
        first += hidden(chunk).sum(0).double()
    first, W_out = first / len(x), W_out.double()
    mean = torch.stack([first[a:b] @ W_out[a:b] for a, b in parts])
    origin = first if centred else torch.zeros_like(first)
    W_out = W_out if root is None else W_out @ root.double()
    triangles = [torch.linalg.qr(W_out[a:b].T).R.to(x.dtype) for a, b in parts]
    origin, norms = origin.to(x.dtype), []
    for chunk in x.split(_CHUNK):
        h = hidden(chunk) - origin
        norms.append(
            torch.stack([(h[:, a:b] @ R.T).norm(dim=1) for (a, b), R in zip(parts, triangles, strict=True)], 1)
        )
    return PathwayStatistics(mean.to(x.dtype), torch.cat(norms))


def fit_router(
    router: PathwayRouter, x: Tensor, norms: Tensor, seed: int, steps: int = 500, batch: int = 1024
) -> float:
    """Fit the router's scores to each pathway's standardised norm; return the share of variance explained.

    This is the norm-predicting router of D2DMoE (arXiv:2310.04361). `linear` is solved by least squares in closed form.
    `mlp` is trained by Adam with a cosine schedule, then its last layer is solved on all tokens. x [n, d]; norms [n, p]
    """
    shared = router.config.n_shared
    target = router.set_norm_scale(norms[:, shared:])
    target = torch.cat([(norms[:, :shared] - router.norm_shift) / router.norm_scale, target], 1).float()
    first = router.out if router.hidden is None else router.hidden
    shift, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    if first.bias is None:
        shift = torch.zeros_like(shift)
    features = (x - shift) / scale
    if router.hidden is not None:
        with torch.enable_grad():
            _descend(router.hidden, router.out, features, target, seed, steps, batch)
        features = router.hidden(features).relu()
    _solve(router.out, features, target)
    first.weight.div_(scale)  # inputs come unstandardised from here on
    if first.bias is not None:
        first.bias.sub_(first.weight @ shift)
    parts = zip(x.split(_CHUNK), target.split(_CHUNK), strict=True)
    missed = sum((y - router(part)).square().sum().item() for part, y in parts)
    return 1.0 - missed / (len(target) * target.var(0, correction=0).sum().item())


def trimmed(norms: Tensor) -> Tensor:
    """Lower the norms [n, p] of tokens with massive activations to four times what is usual above the median.

    A linear router fitted to the norms themselves gives such tokens scores of 100 to 10⁴ (SmolLM2-135M), which gates
    that follow the scores turn into one pathway of weight k. Usual is the 84th percentile.
    """
    sample = norms.flatten()[:: -(-norms.numel() // 2**20)].float()
    median, usual = sample.quantile(0.5), sample.quantile(0.84)
    return norms.clamp_max(median + _OUTLYING * (usual - median))


@torch.no_grad()
def cool(router: PathwayRouter, weights: MLPWeights, offsets: tuple[int, ...], x: Tensor) -> float:
    """Scale the scores for gates that follow them, so that the MLP's output changes least; return the factor.

    The choice stays the same. At the unit variance that :func:`fit_router` gives, a softmax over the chosen pathways
    weighs the strongest many times as much as others, where the dense model weighs all alike (docs/log.md). Tried are
    the `FACTORS`; the measure is the mean of ‖change of the output‖ / ‖output‖ over tokens. x [n, d]; the weights are
    in pathway order.
    """
    x = x[:: -(-len(x) // _COOL_TOKENS)]
    h = neurons(weights, x)
    y, sizes = h @ weights.W_out, torch.tensor(offsets).diff().to(x.device)
    norms = y.norm(dim=1).clamp_min(1e-12)

    def scale(factor: float) -> None:
        for parameter in router.out.parameters():
            parameter.mul_(factor)
        router.norm_scale.div_(factor)

    def error(factor: float) -> float:
        scale(factor)
        gates = router.route(x).gates.repeat_interleave(sizes, dim=1)
        scale(1 / factor)
        return (((h * gates) @ weights.W_out - y).norm(dim=1) / norms).mean().item()

    best = min(FACTORS, key=error)
    scale(best)
    return best


def _descend(hidden: nn.Linear, out: nn.Linear, x: Tensor, y: Tensor, seed: int, steps: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameters = [*hidden.parameters(), *out.parameters()]
    optimizer = torch.optim.Adam(parameters, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 + math.cos(math.pi * step / steps))
        rows = torch.randint(len(x), (min(batch, len(x)),), generator=generator).to(x.device)
        predicted = F.linear(F.linear(x[rows], hidden.weight, hidden.bias).relu(), out.weight, out.bias)
        grads = torch.autograd.grad((predicted - y[rows]).square().mean(), parameters)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None


def _solve(layer: nn.Linear, x: Tensor, y: Tensor, ridge: float = 1e-4) -> None:
    """Fit a linear layer to y [n, p] at x [n, d] by ridge regression in float64; a bias is not penalised."""
    x_mean, y_mean = (values.mean(0, dtype=torch.float64) for values in (x, y))
    origin, level = (x_mean, y_mean) if layer.bias is not None else (torch.zeros_like(x_mean), torch.zeros_like(y_mean))
    moment, cross = (x_mean.new_zeros(x.shape[1], values.shape[1]) for values in (x, y))
    for a, b in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):  # copies in float64 would take gigabytes
        a = a.double() - origin
        moment += einsum(a, a, "n i, n j -> i j") / len(x)
        cross += einsum(a, b.double() - level, "n i, n p -> i p") / len(x)
    variance = moment.diagonal() - (x_mean - origin).square()
    moment.diagonal().add_(ridge * variance.mean().clamp_min(1e-12))
    weight = rearrange(torch.linalg.solve(moment, cross), "i p -> p i")
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(y_mean - weight @ x_mean)
