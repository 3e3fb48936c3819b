"""Quality and cost of executing a share of the MLPs, point by point: what `eval.py dynamick` measures.

Quality is that of the second half of every block, given the first: there each rule applies, also one that reads its
choice off a prompt. Rules on dense models apply to all tokens, `griffin` to those after the prompt.

Shapes: b blocks, t position, n tokens, l layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

import slms.models.convert as convert
from slms.data.text import Blocks
from slms.measure.passes import batches, token_nll
from slms.metrics.loss import DocumentLoss
from slms.models.anatomy import find_mlps
from slms.models.dynamic import LEVELS, RULES, Kept, allocate, apply_rule, dynamic_layers, masking, set_densities
from slms.models.flops import flops_per_token
from slms.models.routed_mlp import routed_layers
from slms.models.weights import read_mlp
from slms.routing import RULES as ROUTED_RULES
from slms.routing import Routes, RoutingConfig

ROUTER = "router"
DENSE_RULES = (*RULES, ROUTER)
"""Rules on a dense model without training; `router` fits pathways and norm-predicting routers (`slms.route`)."""
PATHWAYS = 16


class Quality(NamedTuple):
    """What one pass over the text yields."""

    loss: DocumentLoss
    kept: dict[int, Kept]
    """by layer, the shares that were executed; dense layers absent"""


class Cost(NamedTuple):
    """FLOPs per token."""

    density: float
    """share of all MLP neurons executed"""
    mlp: float
    """of the MLPs: routers, predictors and dense parts of a rule included"""
    total: float
    """of the whole model, head included"""


@torch.inference_mode()
def measure_quality(model: PreTrainedModel, blocks: Blocks, batch_size: int) -> Quality:
    """Losses by document over the second half of each block, and what was executed there."""
    loss, shares = DocumentLoss(), _Shares()
    with _observing(model, shares.add), masking(model):
        for batch in batches(blocks, batch_size):
            shares.weight = len(batch["input_ids"])
            half = batch["input_ids"].shape[1] // 2
            nll = token_nll(model, batch["input_ids"].to(model.device))[:, half:].cpu()
            loss.update(nll.flatten(), batch["doc_ids"][:, half + 1 :].flatten())
    return Quality(loss, shares.means())


class _Shares:
    """Means by layer over batches of unequal size."""

    def __init__(self) -> None:
        self.weight, self.sums = 1, dict[int, tuple[float, float, int]]()

    def add(self, layer: int, kept: Kept) -> None:
        inputs, neurons, total = self.sums.get(layer, (0.0, 0.0, 0))
        w = self.weight
        self.sums[layer] = (inputs + w * kept.inputs, neurons + w * kept.neurons, total + w)

    def means(self) -> dict[int, Kept]:
        return {i: Kept(inputs / total, neurons / total) for i, (inputs, neurons, total) in self.sums.items()}


@contextmanager
def _observing(model: PreTrainedModel, see: Callable[[int, Kept], None]) -> Iterator[None]:
    """Call see(layer, shares) at each forward of an MLP that is routed or under a rule."""
    routed, dynamic = routed_layers(model), dynamic_layers(model)
    before = {index: mlp.recorder for index, mlp in routed.items()}

    def recorder(index: int) -> Callable[[Routes], None]:
        sizes = torch.tensor(routed[index].offsets).diff().float()
        return lambda routes: see(index, Kept(1.0, ((routes.chosen.cpu() * sizes).sum(1).mean() / sizes.sum()).item()))

    try:
        for index, mlp in routed.items():
            mlp.recorder = recorder(index)
        for index, layer in dynamic.items():
            layer.observe = lambda kept, index=index: see(index, kept)
        yield
    finally:
        for index, mlp in routed.items():
            mlp.recorder = before[index]
        for layer in dynamic.values():
            layer.observe = None


def count_cost(dense: PreTrainedModel, model: PreTrainedModel, kept: dict[int, Kept], block_size: int) -> Cost:
    """FLOPs per token at the shares that were measured."""
    whole = flops_per_token(dense, block_size)
    if routed := routed_layers(model):
        flops = flops_per_token(model, block_size, {index: kept[index].neurons for index in routed})
        return Cost(flops.active_fraction, flops.mlp_routed, flops.total_routed)
    mlps = dynamic_layers(model)
    if not mlps:
        return Cost(1.0, whole.mlp_dense, whole.total_dense)
    mlp = sum(layer.flops(kept[index]) for index, layer in mlps.items())
    size = sum(layer.f for layer in mlps.values())
    density = sum(kept[index].neurons * layer.f for index, layer in mlps.items()) / size
    return Cost(density, mlp, whole.total_dense - whole.mlp_dense + mlp)


def under_rule(dense: PreTrainedModel, rule: str, calibration: Tensor) -> PreTrainedModel:
    """The dense model under a training-free rule; raises ValueError where the rule is unknown or does not suit it."""
    if rule != ROUTER:
        if rule not in RULES:
            raise ValueError(f"--rule {rule}: on a dense model it must be one of {', '.join(DENSE_RULES)}")
        return apply_rule(dense, rule, calibration)
    smallest = min(len(read_mlp(mlp).W_in) for mlp in find_mlps(dense).values())
    n = min(PATHWAYS, smallest)
    config = RoutingConfig(n_pathways=n, k=n, every_n_layers=1, router="linear", gate="unit", mean_compensation=True)
    return convert.route(dense, config, calibration).eval()


def set_budget(model: PreTrainedModel, densities: dict[int, float] | float) -> None:
    """Let each MLP execute this share; a routed one as many pathways as come nearest."""
    set_densities(model, densities)
    for index, mlp in routed_layers(model).items():
        share = densities[index] if isinstance(densities, dict) else densities
        mlp.k = min(max(round(share * mlp.config.n_pathways), mlp.config.n_shared + 1), mlp.config.n_pathways)


def layer_sizes(model: PreTrainedModel) -> dict[int, int]:
    """Neurons of each MLP that is routed or under a rule."""
    routed = {index: mlp.offsets[-1] for index, mlp in routed_layers(model).items()}
    return routed or {index: mlp.f for index, mlp in dynamic_layers(model).items()}


@torch.inference_mode()
def layer_costs(
    model: PreTrainedModel, blocks: Tensor, batch_size: int, progress: Callable[[], object] = lambda: None
) -> dict[int, list[float]]:
    """By layer, the nats per token that executing it at each of `LEVELS` costs while all others are dense.

    blocks [b, t]: token ids to measure on, other than those of the frontier. progress: called after each measurement.
    """
    half = blocks.shape[1] // 2

    def nats() -> float:
        parts = [token_nll(model, part.to(model.device))[:, half:].flatten() for part in blocks.split(batch_size)]
        return torch.cat(parts).mean().item()

    costs: dict[int, list[float]] = {}
    with masking(model):
        set_budget(model, 1.0)
        whole = nats()
        for layer in layer_sizes(model):
            costs[layer] = []
            for level in LEVELS[:-1]:
                set_budget(model, dict.fromkeys(layer_sizes(model), 1.0) | {layer: level})
                costs[layer].append(nats() - whole)
                progress()
            costs[layer].append(0.0)
        set_budget(model, 1.0)
    return costs


def densities_for(model: PreTrainedModel, costs: dict[int, list[float]] | None, target: float) -> dict[int, float]:
    """Densities by layer that meet the target: greedily by measured cost, or all alike where there are no costs."""
    sizes = layer_sizes(model)
    return dict.fromkeys(sizes, target) if costs is None else allocate(costs, sizes, target)


@torch.inference_mode()
def set_routed_rule(model: PreTrainedModel, rule: str, density: float | None, blocks: Tensor, batch_size: int) -> None:
    """Let a routed model choose by `rule`; at a mean density of its routed layers on blocks [b, t], else as configured.

    For `top_p` and `threshold` the share or τ that meets the density is found by bisection, one value for all layers.
    """
    layers = routed_layers(model)

    def configure(**changes: Any) -> None:
        for mlp in layers.values():
            mlp.router.config = replace(mlp.router.config, **{"rule": rule, **changes})

    configure()
    if density is None:
        return
    if ROUTED_RULES[rule].fixed:
        return set_budget(model, density)

    def found(value: float) -> float:
        configure(**{ROUTED_RULES[rule].dial: value})
        shares = _Shares()
        with _observing(model, shares.add):
            for part in blocks.split(batch_size):
                shares.weight = len(part)
                model(part.to(model.device), use_cache=False, logits_to_keep=1)
        return sum(kept.neurons for kept in shares.means().values()) / len(layers)

    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < density else (low, middle)
    found(high)
    return None
