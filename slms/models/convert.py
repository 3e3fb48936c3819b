"""Converts a dense language model to a routed one that starts as close to it as calibration tokens allow.

Shapes: b blocks, t position, n calibration tokens (b·t), d model, f neurons, p pathways.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slms.models.activations import attention_states
from slms.models.anatomy import find_attentions, find_mlps
from slms.models.calibration import (
    PathwayStatistics,
    fit_router,
    layer_inputs,
    unit_statistics,
)
from slms.models.families import family_name
from slms.models.group_calibration import MOST_ELEMENTS, Read, calibrate, weighed
from slms.models.partition import CALIBRATED, partition
from slms.models.routed import routed_modules
from slms.models.routed_config import CONFIGS
from slms.models.routed_heads import RoutedHeads
from slms.models.routed_lm import route_modules, routed_class
from slms.models.routed_mlp import RoutedMLP
from slms.models.sensitivity import sensitivity_roots
from slms.models.speedups import prepare
from slms.models.stock import check_base
from slms.models.variants import changed_copy, check_dense
from slms.models.weights import OF_NEURONS, MLPWeights, neurons, read_mlp
from slms.progress import progress
from slms.routing import (
    RULES,
    GateSelector,
    HeadSelector,
    RoutingConfig,
)

logger = logging.getLogger(__name__)


@torch.no_grad()
def route(model: PreTrainedModel, config: RoutingConfig, calibration: Tensor | None = None) -> PreTrainedModel:
    """Make a routed copy of a dense causal language model; the model itself does not change.

    Each routed layer's neurons are grouped into pathways, and its router learns to predict how much every pathway
    contributes. With k = P and gates of 1 the copy computes what the model does. It keeps device, dtype, generation
    configuration and tied weights.

    calibration: token ids [b, t], of which up to 65k are used. Without them the partition is contiguous instead of
    ``coactivation`` or ``learned``, the router is random, and a warning says so. Raises ValueError if model,
    configuration and tokens do not fit together.
    """
    check_dense(model)
    if config.stock:
        check_base(model.config, config)
    if calibration is None:
        config = _uncalibrated(config)
    else:
        check_tokens(calibration, model)

    routed, layers = with_fresh_mlps(model, config)
    heads = {module.layer_index: module for module in routed_modules(routed, RoutedHeads).values()}
    if calibration is not None:
        roots = _roots(model, find_attentions(model), list(heads), calibration, config)
        for i, states in layer_inputs(model, list(heads), calibration, attention_states):
            x, o = states.split([heads[i].shape.d, states.shape[1] - heads[i].shape.d], 1)
            _calibrate_heads(heads[i], x, o, roots.get(i))
    dense = {i: in_fp32(read_mlp(find_mlps(model)[i])) for i in layers}
    if calibration is None:
        for i, mlp in layers.items():
            weights = _fill(mlp, dense[i])
            if isinstance(mlp.router, GateSelector):
                mlp.router.scale.copy_(weights.W_out.norm(dim=1))
                if mlp.router.out_scale is not None:
                    mlp.router.out_scale.copy_(weights.W_out.norm(dim=1))
        return routed
    roots = _roots(model, find_mlps(model), list(layers), calibration, config)
    leaders = list(config.leaders(len(find_mlps(model))).values())
    group: list[Read] = []
    for i, x in progress(layer_inputs(model, list(layers), calibration), "routing layer", len(layers)):
        group.append(Read(layers[i], _fill(layers[i], dense[i], x, roots.get(i)), x, roots.get(i)))
        if len(group) == leaders.count(group[0].mlp.layer_index):
            calibrate(group)
            group = []
    return routed


def with_fresh_mlps(model: PreTrainedModel, config: RoutingConfig) -> tuple[PreTrainedModel, dict[int, RoutedMLP]]:
    """Copy a dense model into its routed class; the routed MLPs, by layer, do not hold the model's weights yet."""
    family = family_name(model.config.model_type)
    routed = changed_copy(model, routed_class(family), CONFIGS[family], routing=config.to_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed or 0)
        modules = route_modules(routed)
    mlps = {module.layer_index: module for module in modules.values() if isinstance(module, RoutedMLP)}
    return prepare(routed), mlps  # like a model read from disk


def _roots(
    model: PreTrainedModel, modules: dict[int, nn.Module], layers: list[int], calibration: Tensor, config: RoutingConfig
) -> dict[int, Tensor]:
    """Return the roots of the layers' modules that weigh what pathways add, by layer; none under importance `norm`."""
    if config.importance != "loss" or not layers:
        return {}
    return sensitivity_roots(model, {i: modules[i] for i in layers}, calibration, config.seed or 0)


def _uncalibrated(config: RoutingConfig) -> RoutingConfig:
    if config.mean_compensation:
        raise ValueError("`routing.mean_compensation` is true; it needs calibration tokens.")
    if RULES[config.rule].held:
        raise ValueError(f"`routing.rule` is {config.rule}; it needs calibration tokens, on which its density is set.")
    if config.router == "static":
        raise ValueError("`routing.router` is static; it needs calibration tokens.")
    if config.n_shared_heads:
        raise ValueError(f"`routing.n_shared_heads` is {config.n_shared_heads}; it needs calibration tokens.")
    changed: dict[str, Any] = {"importance": "norm"} if config.importance == "loss" else {}
    if config.refit:
        changed["refit"] = False
    if config.partition in CALIBRATED and config.target != "attention":
        changed["partition"] = "contiguous"
    if config.router_init == "norm":
        changed["router_init"] = "random"
    told = ", ".join(f"{name} {value}" for name, value in changed.items())
    logger.warning("route without calibration tokens: %s", told or f"partition {config.partition}, random router")
    return dataclasses.replace(config, **changed)


def check_tokens(tokens: Tensor, model: PreTrainedModel, name: str = "calibration") -> None:
    """Raise ValueError, calling the tokens by `name`, if they are not token ids [b, t] that the model can read."""
    longest, vocab = getattr(model.config, "max_position_embeddings", None), model.config.vocab_size
    if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
        raise ValueError(f"`{name}` is {tokens.dtype} {tuple(tokens.shape)}; it must be token ids [blocks, positions].")
    if longest is not None and tokens.shape[1] > longest:
        raise ValueError(f"`{name}` has blocks of {tokens.shape[1]} tokens; the model takes at most {longest}.")
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise ValueError(f"`{name}` holds token {tokens.max().item()}; the model knows 0 to {vocab - 1}.")


def in_fp32(weights: MLPWeights) -> MLPWeights:
    """Return an MLP's weights in fp32."""
    fp32: dict[str, Any] = {
        name: value.float() for name, value in weights._asdict().items() if isinstance(value, Tensor)
    }
    return weights._replace(**fp32)


def _fill(mlp: RoutedMLP, dense: MLPWeights, x: Tensor | None = None, root: Tensor | None = None) -> MLPWeights:
    """Partition a dense MLP's neurons and copy them into the routed one; return the weights in pathway order."""
    config = mlp.config
    acts, W_out = None, weighed(dense.W_out, root).cpu()
    if x is not None and config.partition in CALIBRATED:
        rows = max(1, MOST_ELEMENTS // len(dense.W_in))
        x = x[:: -(-len(x) // rows)]
        acts, x = neurons(dense, x).cpu(), x.cpu()
        if not (acts.norm() * W_out.norm()).square().isfinite():
            raise ValueError(
                f"layer {mlp.layer_index} of the model: the energy that its neurons write on the calibration tokens is "
                f"NaN or infinite; `routing.partition` {config.partition} needs it finite"
            )
        if config.partition == "learned" and config.mean_compensation:
            acts -= acts.mean(0)  # only this is lost of a skipped neuron
    order = partition(
        config.partition,
        dense.W_in.cpu(),
        acts,
        config.n_pathways,
        config.seed or 0,
        W_out=W_out,
        W_gate=None if dense.W_gate is None else dense.W_gate.cpu(),
        n_shared=config.n_shared,
        x=x,
        k=config.k,
    ).permutation.to(dense.W_in.device)
    named = {name: getattr(dense, name) for name in OF_NEURONS}
    mlp.load_dense(**named, b_out=dense.b_out, permutation=order)
    return dense.in_order(order)


def _calibrate_heads(heads: RoutedHeads, x: Tensor, o: Tensor, root: Tensor | None) -> None:
    """Set what chooses, and mean outputs, from inputs x [n, d] and the dense heads' outputs o [n, h·e]."""
    config = heads.config
    statistics = _head_statistics(heads, o, root)
    if heads.mean_out is not None:
        heads.mean_out.copy_(statistics.mean)
    if isinstance(heads.router, HeadSelector):
        if heads.router.contribution is not None:
            heads.router.contribution.copy_(statistics.norms.mean(0))
        return
    if heads.router.shared is not None:  # by plain norms, after which training ends lower (docs/log.md)
        heads.router.share((statistics if root is None else _head_statistics(heads, o, None)).norms.mean(0))
    if config.router_init == "norm":
        router = copy.deepcopy(heads.router).float()
        explained = fit_router(router, x, statistics.norms, (config.seed or 0) + heads.layer_index)
        heads.router.load_state_dict(router.state_dict())
        logger.info("%s: the router explains %.2f of the variance of norms", heads.place, explained)


def _head_statistics(heads: RoutedHeads, o: Tensor, root: Tensor | None) -> PathwayStatistics:
    bounds = range(0, o.shape[1] + 1, heads.shape.e)
    return unit_statistics(lambda o: o, heads.W_O().float(), o, bounds, heads.config.mean_compensation, root)
