"""Measures, for `eval.py dynamick`, the quality and cost of executing a share of the MLPs, point by point.

What is scored is what is timed: the first half of every block is its prompt, and quality is measured on the second
half. Rules that choose for each token, and `griffin`, run prompts dense, so the scored tokens see a dense prompt.
Routed models and `static` skip in prompts too. An MLP that runs dense because its rule is slower is scored dense.

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
from slms.measure.frontier import Cost
from slms.measure.passes import batches, token_nll
from slms.metrics.loss import DocumentLoss
from slms.models.anatomy import find_mlps
from slms.models.densities import set_thresholds
from slms.models.dynamic import (
    LEVELS,
    RULES,
    Kept,
    allocate,
    apply_rule,
    dynamic_mlps,
    masking,
    set_densities,
    set_published,
)
from slms.models.flops import flops_per_token
from slms.models.routed import routed_modules
from slms.models.weights import read_mlp
from slms.routing import RULES as ROUTED_RULES
from slms.routing import Routes, RoutingConfig

ROUTER = "router"
DENSE_RULES = (*RULES, ROUTER)
"""Rules for a dense model without training; `router` fits pathways and norm-predicting routers (`slms.route`)."""
BUDGETS = ("published", "uniform", "loss")
"""How layers and matrices share a density: as the rule's paper does, all alike, or layers by the loss they cost."""
EXECUTIONS = ("fastest", "rule")
"""How a rule decodes: dense where it was measured slower (`slms.models.dynamic.break_even`), or always as itself."""
WITHOUT_PAPER = ("oracle", "low_rank", "static", ROUTER)
"""Rules of no paper; `published` gives them the budget by loss, so that the controls among them are strong."""
PATHWAYS = 32
"""Pathways of `router` where no routed model says how many."""


class Execution(NamedTuple):
    """The losses of one pass over the text, and what it executed."""

    loss: DocumentLoss
    kept: dict[str, Kept]
    """by place, the shares that were executed; dense MLPs are absent"""


@torch.inference_mode()
def measure_quality(model: PreTrainedModel, blocks: Blocks, batch_size: int, as_executed: bool = False) -> Execution:
    """Measure losses by document over the second half of each block, and what is executed there.

    as_executed: an MLP that decodes dense, because its rule is slower there, is scored dense.
    """
    loss, shares = DocumentLoss(), _Shares()
    with _observing(model, shares.add), masking(model, as_executed=as_executed):
        for batch in batches(blocks, batch_size):
            shares.weight = len(batch["input_ids"])
            half = batch["input_ids"].shape[1] // 2
            nll = token_nll(model, batch["input_ids"].to(model.device))[:, half:].cpu()
            loss.update(nll.flatten(), batch["doc_ids"][:, half + 1 :].flatten())
    return Execution(loss, shares.means())


class _Shares:
    """Averages shares by place over batches of unequal size."""

    def __init__(self) -> None:
        self.weight, self.sums = 1, dict[str, tuple[float, float, float, int]]()

    def add(self, place: str, kept: Kept) -> None:
        inputs, neurons, out, total = self.sums.get(place, (0.0, 0.0, 0.0, 0))
        w = self.weight
        added = w * kept.inputs, w * kept.neurons, w * kept.neurons * kept.through
        self.sums[place] = (inputs + added[0], neurons + added[1], out + added[2], total + w)

    def means(self) -> dict[str, Kept]:
        return {
            place: Kept(inputs / total, neurons / total, out / neurons if neurons else 1.0)
            for place, (inputs, neurons, out, total) in self.sums.items()
        }


@contextmanager
def _observing(model: PreTrainedModel, see: Callable[[str, Kept], None]) -> Iterator[None]:
    """Call see(layer, shares) at each forward of an MLP that is routed or under a rule."""
    routed, dynamic = routed_modules(model), dynamic_mlps(model)
    before = {place: module.recorder for place, module in routed.items()}

    def recorder(place: str) -> Callable[[Routes], None]:
        sizes = torch.tensor(routed[place].offsets).diff().float()

        def of(routes: Routes) -> Kept:
            ran = (routes.chosen.cpu() * sizes).sum()
            through = 1.0 if routes.through is None else (routes.through.sum().cpu() / ran.clamp_min(1)).item()
            return Kept(1.0, (ran / len(routes.chosen) / sizes.sum()).item(), through)

        return lambda routes: see(place, of(routes))

    try:
        for place, module in routed.items():
            module.recorder = recorder(place)
        for place, mlp in dynamic.items():
            mlp.observe = lambda kept, place=place: see(place, kept)
        yield
    finally:
        for place, module in routed.items():
            module.recorder = before[place]
        for mlp in dynamic.values():
            mlp.observe = None


def count_cost(
    dense: PreTrainedModel,
    model: PreTrainedModel,
    kept: dict[str, Kept],
    block_size: int,
    as_executed: bool = False,
) -> Cost:
    """FLOPs per token at the shares that were measured, `as_executed` or not."""
    whole = flops_per_token(dense, block_size)
    if routed := routed_modules(model):
        shares = {place: kept[place].neurons for place in routed}
        counted = flops_per_token(model, block_size, shares, {place: kept[place].through for place in routed})
        return Cost(counted.active_fraction, *(counted.mlp_routed, counted.total_routed) * 2)
    mlps = dynamic_mlps(model)
    if not mlps:  # dense: the same model, or one whose MLPs are smaller
        own = flops_per_token(model, block_size)
        return Cost(own.active_fraction, *(own.mlp_routed, own.total_routed) * 2)
    by_place = {
        place: mlp.dense_flops() if as_executed and mlp.plan().dense else mlp.flops(kept[place])
        for place, mlp in mlps.items()
    }
    flops = sum(by_place.values())
    shares = shares_of(model, kept)
    density = sum(shares[place] * mlp.f for place, mlp in mlps.items()) / sum(mlp.f for mlp in mlps.values())
    rest = whole.total_dense - whole.mlp_dense
    prompt = sum(mlp.dense_flops() if mlp.dense_prompts else by_place[place] for place, mlp in mlps.items())
    return Cost(density, flops, rest + flops, prompt, rest + prompt)


def shares_of(model: PreTrainedModel, kept: dict[str, Kept]) -> dict[str, float]:
    """By place, the share that a density counts: of the neurons, or of the weights for rules that choose inputs."""
    mlps = dynamic_mlps(model)
    return {place: mlps[place].share(found) if place in mlps else found.neurons for place, found in kept.items()}


def under_rule(
    dense: PreTrainedModel, rule: str, calibration: Tensor, centre: bool = False, pathways: int = PATHWAYS
) -> PreTrainedModel:
    """The dense model under a training-free rule; raises ValueError if the rule is unknown or does not suit it.

    centre: what is skipped leaves its calibrated mean (`apply_rule`). pathways: how many `router` makes of an MLP.
    """
    if rule != ROUTER:
        if rule not in RULES:
            raise ValueError(f"--rule {rule}: on a dense model it must be one of {', '.join(DENSE_RULES)}")
        return apply_rule(dense, rule, calibration, centre)
    smallest = min(len(read_mlp(mlp).W_in) for mlp in find_mlps(dense).values())
    n = min(pathways, smallest)
    config = RoutingConfig(n_pathways=n, k=n, every_n_layers=1, router="linear", gate="unit", mean_compensation=True)
    return convert.route(dense, config, calibration).eval()


def suitable(model: PreTrainedModel) -> list[str]:
    """Return the dense rules that suit a model: all but `cats`, which needs gated MLPs."""
    gated = read_mlp(find_mlps(model)[0]).W_gate is not None
    return [name for name in DENSE_RULES if gated or name != "cats"]


def pathways_of(routed: PreTrainedModel | None) -> int:
    """Return how many pathways `router` makes of an MLP: as many as the routed model has."""
    modules = routed_modules(routed) if routed is not None else {}
    return max((module.config.n_pathways for module in modules.values()), default=PATHWAYS)


def set_budget(model: PreTrainedModel, densities: dict[str, float] | float) -> None:
    """Make each MLP execute this share; a routed one executes the number of pathways that comes nearest."""
    set_densities(model, densities)
    for place, module in routed_modules(model).items():
        share, config = densities[place] if isinstance(densities, dict) else densities, module.config
        module.k = min(max(round(share * config.n_pathways), config.n_shared + 1), config.n_pathways)


def sizes_of(model: PreTrainedModel) -> dict[str, int]:
    """The number of neurons of each MLP that is routed or under a rule, by place."""
    routed = {place: module.offsets[-1] for place, module in routed_modules(model).items()}
    return routed or {place: mlp.f for place, mlp in dynamic_mlps(model).items()}


@torch.inference_mode()
def costs_of(
    model: PreTrainedModel, blocks: Tensor, batch_size: int, progress: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """By place, the nats per token lost by executing it at each of `LEVELS` while all others are dense.

    blocks [b, t]: token ids to measure on, not those of the frontier. progress: called after each measurement.
    """
    half = blocks.shape[1] // 2

    def nats() -> float:
        parts = [token_nll(model, part.to(model.device))[:, half:].flatten() for part in blocks.split(batch_size)]
        return torch.cat(parts).mean().item()

    costs: dict[str, list[float]] = {}
    with masking(model):
        set_budget(model, 1.0)
        whole = nats()
        for place in sizes_of(model):
            costs[place] = []
            for level in LEVELS[:-1]:
                set_budget(model, dict.fromkeys(sizes_of(model), 1.0) | {place: level})
                costs[place].append(nats() - whole)
                progress()
            costs[place].append(0.0)
        set_budget(model, 1.0)
    return costs


def share_out(model: PreTrainedModel, budget: str, target: float, costs: dict[str, list[float]] | None = None) -> None:
    """Set what each MLP executes for a mean density `target`, by one of `BUDGETS`.

    costs: from `costs_of`; `loss` needs them below 1, and so does `published` for the rules `WITHOUT_PAPER`.
    """
    set_budget(model, target if costs is None else allocate(costs, sizes_of(model), target))
    if budget == "published" and costs is None:
        set_published(model, target)


@torch.inference_mode()
def set_routed_rule(model: PreTrainedModel, rule: str, density: float | None, blocks: Tensor, batch_size: int) -> None:
    """Make a routed model choose by `rule`, as configured or at a mean density of its routed modules on blocks [b, t].

    For `top_p` and `threshold`, bisection finds the share or τ that meets the density, one value for all modules. For
    `controlled`, each module gets the threshold that meets it, unless training has set one and no density is given.
    """
    modules = routed_modules(model)
    trained = all(module.config.rule == rule for module in modules.values() if module.part == "mlp")

    def configure(**changes: Any) -> None:
        for module in modules.values():
            module.router.config = replace(module.router.config, **{"rule": rule, **changes})

    configure()
    if ROUTED_RULES[rule].held == "penalty" and density is not None:
        raise ValueError(f"--rule {rule}: it executes what the routers were trained to execute, at no other --density")
    if ROUTED_RULES[rule].held and not (trained and density is None):
        return set_thresholds(model, density, blocks, batch_size)
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
        return sum(kept.neurons for kept in shares.means().values()) / len(modules)

    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < density else (low, middle)
    found(high)
    return None
