"""Counts the matrix-product FLOPs per token of a causal language model, dense, routed or cut, from its modules.

Shapes: t positions, d model, f neurons, p pathways, h heads of e dimensions.

One multiply–add is two FLOPs. Norms, activations, softmax, embeddings and rotary angles are not counted, as is usual
(Kaplan et al., arXiv:2001.08361, table 1); they are at most a few percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from slms.models.anatomy import family_of, find_attentions, find_mlps
from slms.models.routed import Routed
from slms.models.routed_heads import RoutedHeads, head_shape
from slms.models.routed_mlp import RoutedMLP
from slms.models.weights import read_mlp
from slms.routing import RULES, GateSelector


class Flops(NamedTuple):
    """FLOPs per token of one forward pass."""

    mlp_dense: int
    """All MLPs, with every neuron of the dense base executed and no router."""
    mlp_routed: float
    """All MLPs as they run, with routers, mean compensation and only the executed neurons."""
    total_dense: int
    """The whole model, including the language-model head, with dense MLPs."""
    total_routed: float
    active_fraction: float
    """Share of all MLP neurons that are executed: ρ averaged over layers, weighted by width."""
    head_fraction: float | None = None
    """Share of all query heads that are executed; None if none is routed."""

    @property
    def mlp_saving(self) -> float:
        """Share of the MLPs' FLOPs that routing saves; negative if routers cost more than they save."""
        return 1.0 - self.mlp_routed / self.mlp_dense

    @property
    def total_saving(self) -> float:
        """Share of the whole model's FLOPs that routing saves."""
        return 1.0 - self.total_routed / self.total_dense


def flops_per_token(
    model: PreTrainedModel,
    seq_len: int,
    density: dict[str, float] | float | None = None,
    through: Mapping[str, float] | None = None,
) -> Flops:
    """Count FLOPs per token, averaged over the positions of a sequence of ``seq_len`` tokens.

    density: measured share of units executed in each routed module, by place or one for all; by default k / P, or 1 if
    the rule lets k vary and nothing holds its mean. through: measured share of these that go through W_out, by place,
    of places with a second choice; by default k_out / k. Works on the `meta` device too.
    """
    if seq_len < 1:
        raise ValueError(f"`seq_len` is {seq_len}; it must be at least 1.")
    dense = routed = 0.0
    neurons = active = 0.0
    widths: dict[int, int] = getattr(model, "dense_widths", {})  # of a cut model
    for index, mlp in find_mlps(model).items():
        here = mlp_flops(mlp, density, through)
        f = widths.get(index, here.neurons)
        dense, routed = dense + here.per_neuron * f, routed + here.run
        neurons, active = neurons + f, active + here.active
    attentions = find_attentions(model)
    skipped = {*find_mlps(model).values(), *attentions.values()}
    rest = _linear_flops(model.get_submodule(family_of(model).layers), skip=skipped)
    rest += 2 * model.get_output_embeddings().weight.numel()
    shape, whole, run, heads = head_shape(model.config), 0.0, 0.0, 0.0
    for attention, keys in zip(attentions.values(), _keys_seen(model, seq_len), strict=True):
        share, queries, extra = _of_heads(attention, density)
        per_head = 2 * shape.d * shape.e + 4 * shape.e * keys  # a row of W_O, q kᵀ and the sum of v
        fixed = 4 * shape.kv * shape.d * shape.e
        whole += shape.h * (per_head + 2 * shape.d * shape.e) + fixed
        run += shape.h * (share * per_head + queries * 2 * shape.d * shape.e) + fixed + extra
        heads += share / len(attentions)
    any_routed = any(isinstance(attention, RoutedHeads) for attention in attentions.values())
    total = round(dense + rest + whole), routed + rest + run
    return Flops(int(dense), routed, *total, active / neurons, heads if any_routed else None)


class MLPFlops(NamedTuple):
    """FLOPs per token of one MLP."""

    neurons: int
    """that the MLP has"""
    active: float
    """neurons that are executed"""
    per_neuron: int
    run: float
    """of the MLP as it runs, with its router and mean compensation"""


def mlp_flops(
    mlp: nn.Module, density: dict[str, float] | float | None = None, through: Mapping[str, float] | None = None
) -> MLPFlops:
    """Count the FLOPs per token of a dense or routed MLP; `density` and `through` as in :func:`flops_per_token`."""
    weights = read_mlp(mlp)
    f, d = weights.W_in.shape
    per_neuron, share, extra = 2 * (2 if weights.W_gate is None else 3) * d, 1.0, 0.0
    if isinstance(mlp, RoutedMLP):
        share, extra = _density(mlp, density), _linear_flops(mlp.router)
        if isinstance(mlp.router, GateSelector):
            extra += (1 - share) * 2 * f * d  # the gate of what is skipped
            if mlp.k_out is not None:
                left = mlp.k_out / mlp.k if through is None else through[mlp.place]
                extra -= share * (1 - left) * 2 * f * d  # what stops before W_out
        if mlp.mean_out is not None:
            extra += 2 * mlp.mean_out.numel()
    return MLPFlops(f, share * f, per_neuron, share * per_neuron * f + extra)


def _density(module: Routed, density: dict[str, float] | float | None) -> float:
    if density is None:
        rule = RULES[module.config.rule]
        return module.k / module.config.n_pathways if rule.fixed or rule.held else 1.0
    value = density if isinstance(density, int | float) else density[module.place]
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"`density` of {module.place} is {value}; it must lie between 0 and 1.")
    return value


def _linear_flops(module: nn.Module, skip: frozenset | set = frozenset()) -> int:
    """Count 2 · (weights of all linear layers), each used once per token."""
    if module in skip:
        return 0
    own = 2 * module.weight.numel() if isinstance(module, nn.Linear | Conv1D) else 0
    return own + sum(_linear_flops(child, skip) for child in module.children())


def _of_heads(attention: nn.Module, density: dict[str, float] | float | None) -> tuple[float, float, float]:
    """Return the shares of the heads and of the queries that are computed, and the FLOPs of router and means."""
    if not isinstance(attention, RoutedHeads):
        return 1.0, 1.0, 0.0
    extra = _linear_flops(attention.router) + (0 if attention.mean_out is None else 2 * attention.mean_out.numel())
    share = _density(attention, density)
    return share, 1.0 if attention.config.router == "query_norm" else share, extra


def _keys_seen(model: PreTrainedModel, t: int) -> list[float]:
    """Return how many keys a query sees in each layer, on average: (t + 1)/2, or fewer in a window."""
    windows = (min(window or t, t) for window in _windows(model))
    return [(w * (w + 1) / 2 + (t - w) * w) / t for w in windows]


def _windows(model: PreTrainedModel) -> list[int | None]:
    """Return how many keys each layer's attention sees at most; None means all."""
    config, n = model.config, len(find_mlps(model))
    if hasattr(config, "attention_layers"):  # GPT-Neo
        return [config.window_size if kind == "local" else None for kind in config.attention_layers]
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * n
    return [window if kind == "sliding_attention" else None for kind in kinds]
