"""Moves neurons between pathways while a run trains: the partition follows what the routers choose.

The assignment is hard at every step, so that checkpoints, validation and export see an ordinary partition. For each
neuron and pathway a running mean keeps how much the neuron contributes to the tokens that choose the pathway; now and
then the balanced assignment that holds most of it is solved anew, and neurons move with all that belongs to them.

Shapes: n tokens, d model, f neurons, p pathways.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from slms.lit.balances import key_of
from slms.models.activations import mlp_inputs
from slms.models.clustering import MOST_GROUPS, balanced_assignment
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.models.weights import MLPWeights, neurons
from slms.routing import RULES, Routes, RoutingConfig

_STRIDE = 4
"""Every so many tokens are looked at, which takes a tenth of a gated MLP's FLOPs in training at half density, not two
fifths."""


@dataclass(frozen=True)
class AssignmentConfig:
    """When neurons may move between pathways, and for how much.

    Args:
        every: optimizer steps from one assignment to the next.
        until: share of the run's steps after which every neuron stays where it is.
        momentum: share of the past in the running mean of gains, at each optimizer step.
        least: a neuron moves only if what it contributes to tokens that choose its pathway rises by this share, or if
            one that gains more takes its place.
    """

    every: int = 20
    until: float = 0.5
    momentum: float = 0.97
    least: float = 0.05

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"model.assignment.every is {self.every}; it must be at least 1")
        if not 0 < self.until <= 1:
            raise ValueError(f"model.assignment.until is {self.until}; it must lie in (0, 1]")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"model.assignment.momentum is {self.momentum}; it must lie in [0, 1)")
        if self.least < 0:
            raise ValueError(f"model.assignment.least is {self.least}; it must be at least 0")

    def moves_at(self, step: int, total: int) -> bool:
        """Whether neurons may still move at optimizer step `step` (from 0) of `total`.

        >>> [AssignmentConfig(until=0.5).moves_at(step, 4) for step in range(4)]
        [True, True, False, False]
        """
        return step < self.until * total


def check_assignment(routing: RoutingConfig | None) -> None:
    """Raise ValueError if a run with this routing has no neurons to move, or moving them would change the function."""
    given = "model.assignment is given and model.routing"
    if routing is None:
        raise ValueError(f"{given} null; it moves neurons between pathways")
    if routing.target == "attention":
        raise ValueError(f"{given}.target attention; it moves neurons of MLPs, and heads stay in their groups")
    if routing.router == "gate":
        raise ValueError(f"{given}.router gate; it needs a router that learns: mlp or linear")
    if routing.gate != "unit":
        raise ValueError(
            f"{given}.gate {routing.gate}; it must be unit, as a neuron that moves would be multiplied by another gate"
        )
    if RULES[routing.rule].dial == "k" and routing.k == routing.n_pathways:
        raise ValueError(f"{given}.k {routing.k}, every pathway; where a neuron is would make no difference")
    n_routed = routing.n_pathways - routing.n_shared
    if not 2 <= n_routed <= MOST_GROUPS:
        raise ValueError(
            f"{given} has {n_routed} pathways to choose from; it must be 2 to {MOST_GROUPS}, as an assignment takes "
            "time in the square of their number"
        )


class Gains(nn.Module):
    """What each neuron of an MLP would contribute to the tokens that choose each pathway, as a running mean.

    A neuron's contribution to a token is its share e_i = a_i²‖w_out_i‖² / Σ_j a_j²‖w_out_j‖² of the energy that the
    neurons write; a − E a takes the place of a if the means of skipped pathways are compensated.
    """

    gain: Tensor
    mean: Tensor
    weight: Tensor
    moved: Tensor

    def __init__(self, n_neurons: int, n_pathways: int) -> None:
        super().__init__()
        self.register_buffer("gain", torch.zeros(n_neurons, n_pathways))
        self.register_buffer("mean", torch.zeros(n_neurons))
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("moved", torch.zeros((), dtype=torch.int64))
        self._sum: Tensor | None = None  # [f · (p + 1) + 1] of the step under way: gains, activations, tokens

    def mean_activation(self) -> Tensor:
        """The neurons' mean activations [f]."""
        return self.mean / self.weight.clamp_min(1e-12)

    @torch.no_grad()
    def count(self, mlp: RoutedMLP, x: Tensor, chosen: Tensor) -> None:
        """Add tokens with inputs x [n, d] of the MLP and choices [n, p]."""
        x, chosen = x[::_STRIDE].float(), chosen[::_STRIDE]
        rows = {name: getattr(mlp, name) for name in ("W_in", "W_out", "b_in", "W_gate", "b_gate")}
        fp32: dict[str, Any] = {name: None if w is None else w.float() for name, w in rows.items()}
        with torch.autocast(x.device.type, enabled=False):
            acts = neurons(MLPWeights(**fp32, b_out=None, activation=mlp.activation), x)
            lost = acts - self.mean_activation() if mlp.mean_out is not None else acts
            energy = lost.square() * fp32["W_out"].square().sum(1)
            energy /= energy.sum(1, keepdim=True).clamp_min(1e-30)
            found = torch.cat([energy.T @ chosen.float(), acts.sum(0)[:, None]], 1).flatten()
        found = torch.cat([found, found.new_tensor([len(x)])])
        self._sum = found if self._sum is None else self._sum + found

    @torch.no_grad()
    def fold(self, momentum: float) -> None:
        """Fold an ended step's tokens, of all ranks, into the running means; every rank must call it."""
        assert self._sum is not None
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._sum)
        step = (self._sum[:-1] / self._sum[-1]).view(len(self.mean), -1)
        self._sum = None
        for kept, new in ((self.gain, step[:, :-1]), (self.mean, step[:, -1])):
            kept.mul_(momentum).add_(new, alpha=1 - momentum)
        self.weight.mul_(momentum).add_(1 - momentum)

    @torch.no_grad()
    def reassign(self, mlp: RoutedMLP, optimizer: Optimizer, least: float) -> None:
        """Move the MLP's neurons, and what the optimizer keeps of them, where they gain most; all ranks do the same.

        Raises:
            ValueError: gains are not finite; every rank has the same.
        """
        if not self.gain.isfinite().all():
            raise ValueError(
                f"{mlp.place}: what its neurons contribute is NaN or infinite; model.assignment needs it finite"
            )
        first = mlp.offsets[mlp.config.n_shared]  # shared pathways keep their neurons
        sizes = np.diff(mlp.offsets)
        before = np.repeat(np.arange(len(sizes)), sizes)
        gain = self.gain[first:, mlp.config.n_shared :].cpu().double().numpy().copy()
        gain[np.arange(len(gain)), before[first:] - mlp.config.n_shared] *= 1 + least
        after = before.copy()
        after[first:] = mlp.config.n_shared + balanced_assignment(gain, sizes[mlp.config.n_shared :]).labels
        pathway = torch.from_numpy(after).to(self.gain.device)
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(pathway, 0)  # machines that round otherwise would break a tie otherwise
        self.moved += (pathway != torch.from_numpy(before).to(pathway)).sum()
        order = mlp.regroup(pathway, self.mean_activation())
        for rows in (self.gain, self.mean):
            rows.copy_(rows[order])
        parameters = (mlp.W_in, mlp.W_out, mlp.W_gate, mlp.b_in, mlp.b_gate)
        for parameter in (parameter for parameter in parameters if parameter is not None):
            for kept in optimizer.state.get(parameter, {}).values():
                if isinstance(kept, Tensor) and kept.shape == parameter.shape:
                    kept.copy_(kept[order])


class Moves(nn.ModuleDict):
    """The gains of every routed MLP of a run; empty if its neurons stay where they are."""

    config = AssignmentConfig()

    def follow(self, net: nn.Module, config: AssignmentConfig) -> None:
        """Keep gains for each routed MLP of a model.

        Raises:
            ValueError: pathways are single neurons.
        """
        self.config = config
        for place, mlp in routed_modules(net, RoutedMLP).items():
            f, p = len(mlp.W_in), mlp.config.n_pathways
            if f - mlp.offsets[mlp.config.n_shared] == p - mlp.config.n_shared:
                raise ValueError(
                    f"model.assignment is given and model.routing.n_pathways {p}; pathways of single neurons cannot "
                    "exchange any"
                )
            self[key_of(place)] = Gains(f, p).to(mlp.W_in.device)

    def watch(self, net: PreTrainedModel, step: int, total: int) -> AbstractContextManager[dict[int, Tensor]]:
        """Yield a dict that forwards fill with the inputs [n, d] of each layer's MLP, if neurons may still move."""
        if not self or not self.config.moves_at(step, total):
            return nullcontext({})
        return mlp_inputs(net, [mlp.layer_index for mlp in routed_modules(net, RoutedMLP).values()])

    def count(self, net: nn.Module, routes: Mapping[str, Routes], inputs: Mapping[int, Tensor]) -> None:
        """Count a batch's routes by place and what :meth:`watch` saw, which may be nothing."""
        for place, mlp in routed_modules(net, RoutedMLP).items() if inputs else ():
            self._of(place).count(mlp, inputs[mlp.layer_index], routes[place].chosen)

    def step(self, net: nn.Module, optimizer: Optimizer, step: int, total: int) -> None:
        """Fold the batches of an optimizer step (from 0) that has ended and, if it is the turn, move neurons.

        Every rank must call it.
        """
        for place, mlp in routed_modules(net, RoutedMLP).items() if self and self.config.moves_at(step, total) else ():
            self._of(place).fold(self.config.momentum)
            if (step + 1) % self.config.every == 0:
                self._of(place).reassign(mlp, optimizer, self.config.least)

    def shares(self, net: nn.Module) -> dict[str, Tensor]:
        """By place, neurons that changed pathway since the last call, over all; one may count twice."""
        found = {}
        for place, mlp in routed_modules(net, RoutedMLP).items() if self else ():
            moved = self._of(place).moved
            found[place] = moved / len(mlp.W_in)
            moved.zero_()
        return found

    def _of(self, place: str) -> Gains:
        gains = self[key_of(place)]
        assert isinstance(gains, Gains)
        return gains
