"""A dense MLP under a rule, with what all rules share.

Shapes: b blocks, t position, n tokens, d model, f neurons.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slms.kernels.activations import ACTIVATIONS
from slms.kernels.cpu.pointwise import CODES
from slms.kernels.cpu.rule_rows import Choice, RuleCall, RuleMLP, fits
from slms.kernels.neurons import can_skip, dots, sums
from slms.models.dynamic.break_even import FEW, MORE, Plan, plan
from slms.models.weights import MLPWeights, neurons


class Kept(NamedTuple):
    """The shares of a layer's weights that a call used, averaged over tokens."""

    inputs: float
    """share of the columns of W_in and W_gate, their mean; 1 for rules that choose neurons"""
    neurons: float
    """share of the neurons; for rules that choose inputs, of those of the down-projection"""
    through: float = 1.0
    """share of these neurons that go through the down-projection, where a routed MLP chooses twice"""


class DynamicMLP(nn.Module, ABC):
    """A dense MLP under a rule. x [b, t, d] are calibration inputs at construction and the tokens to run in forward."""

    kind = "output"
    """what is read whole and what by choice, on which the break-even density depends (`break_even`)"""
    dense_prompts = True
    """whether prompts run dense: they would read all rows, where each token has its own set"""

    def __init__(self, weights: MLPWeights, x: Tensor, centre: bool = False) -> None:
        super().__init__()
        weights = weights.in_rows()  # copied once here, not for every token
        self.weights, self.act = weights, ACTIVATIONS[weights.activation]
        self.gated = weights.W_gate is not None
        self.f, self.d = weights.W_in.shape
        h = neurons(weights, x)
        self.centre = centre
        self.mean = h.mean((0, 1)) if centre else torch.zeros_like(h[0, 0])
        b_out = 0 if weights.b_out is None else weights.b_out
        self.constant = (b_out + self.mean @ weights.W_out).contiguous()
        self.out_norm = weights.W_out.norm(dim=1)
        self.masking = self.with_prompt = self.as_executed = self.forced = False
        self.observe: Callable[[Kept], None] | None = None
        self.fit(x, h)
        self.density = 1.0
        self.eval()  # it has no training

    @property
    def density(self) -> float:
        """Share of the neurons (or of the inputs of every matrix) to keep; thresholds are quantiles of calibration."""
        return self._density

    @density.setter
    def density(self, value: float) -> None:
        if not 0 < value <= 1:
            raise ValueError(f"`density` is {value}; it must be above 0 and at most 1.")
        self._density, self.k = value, max(1, int(value * self.f + 1e-6))  # rounded down, as the papers' code does
        self._compiled: RuleMLP | None = None
        self.set(value)

    @classmethod
    def spread(cls, mlps: Sequence[DynamicMLP], density: float) -> None:
        """Set the shares of a model's MLPs as published, for a mean density of about `density`; here all alike."""
        for mlp in mlps:
            mlp.density = density

    def fit(self, x: Tensor, h: Tensor) -> None:
        """Compute what the rule needs from calibration inputs x [b, t, d] and activations h [b, t, f]."""

    def set(self, density: float) -> None:
        """Adjust the rule to a density."""

    @abstractmethod
    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the neurons [b, t, f] bool to execute, given all activations h [b, t, f]."""

    @abstractmethod
    def flops(self, kept: Kept) -> float:
        """Return the FLOPs of one token, 2 · (weights used), including the cost of choosing."""

    def dense_flops(self) -> float:
        """Return the FLOPs of one token of the dense MLP."""
        return self._size() * (3 if self.gated else 2)

    def share(self, kept: Kept) -> float:
        """Return the share of the MLP that was used, which a density counts."""
        return kept.neurons

    def prompt(self, x: Tensor) -> int:
        """Return how many of the first positions of x [b, t, d] are a prompt, which `masked` leaves dense."""
        return x.shape[1] // 2 if self.with_prompt and self.dense_prompts else 0

    def masked(self, x: Tensor) -> Tensor:
        """Compute everything, then leave out what the rule skips; this serves to measure quality, never speed."""
        h, prompt = neurons(self.weights, x), self.prompt(x)
        keep = self.keep(x, h)
        self._observed(Kept(1.0, keep[:, prompt:].float().mean().item()))
        if prompt:
            keep = torch.cat([torch.ones_like(keep[:, :prompt]), keep[:, prompt:]], 1)
        return ((h - self.mean) * keep) @ self.weights.W_out + self.constant

    @abstractmethod
    def skipping(self, x: Tensor) -> Tensor:
        """Compute the same for x [n, d] while reading only what was chosen."""

    @abstractmethod
    def call(self) -> RuleCall:
        """Describe what `skipping` computes, for the compiled loops."""

    def plan(self, n_tokens: int = 1) -> Plan:
        """Tell whether a call of so many tokens runs dense, and why; never while `forced`."""
        if self.forced:
            return Plan(False, "the rule is forced")
        W = self.weights.W_out
        compiled = W.dtype == torch.float32 and self.weights.activation in CODES
        return plan(self.kind, self.density, n_tokens <= (FEW if compiled else 1), W.device.type, compiled)

    def force(self, forced: bool) -> None:
        """Execute the rule even where dense is faster, or no longer."""
        self.forced, self._compiled = forced, None

    def compiled(self) -> RuleMLP | None:
        """Return what a few tokens run in one compiled call, for float32 on the CPU; None where no loop serves."""
        if self._compiled is None and fits(call := self._whole() if self.plan().dense else self.call()):
            self._compiled = RuleMLP(call)
        return self._compiled

    def one_token(self) -> RuleMLP | None:
        """Return what computes a single token's output now; None if that is not one compiled call."""
        return None if self.masking else self.compiled()

    def execute(self, x: Tensor) -> Tensor:
        """Compute the output of a few tokens x [n, d] by the fastest code that serves."""
        compiled = self.compiled()
        if compiled is None or x.dtype != torch.float32 or x.device.type != "cpu":
            return self.dense(x) if self.plan(len(x)).dense else self.skipping(x)
        return compiled(x)

    def dense(self, x: Tensor) -> Tensor:
        """Compute the MLP without any rule."""
        return F.linear(neurons(self.weights, x), self.weights.W_out.t(), self.weights.b_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [b, t, d], masked while `masking`, else executed (see the docstring of `rules`)."""
        if self.masking:
            return self.scored(x)
        n = x.shape[:-1].numel()
        if self.dense_prompts and (n > MORE or not can_skip(x, n) or (n > FEW and self.plan(n).dense)):
            return self.dense(x)
        run = self.execute if n <= (MORE if self.dense_prompts else FEW) else self.skipping
        return run(x.reshape(n, self.d)).view(x.shape)

    def scored(self, x: Tensor) -> Tensor:
        """Compute `masked`, or, `as_executed`, the dense MLP where a decoded token runs it."""
        if self.as_executed and self.plan().dense:
            self._observed(Kept(1.0, 1.0))
            return self.dense(x)
        return self.masked(x)

    def _whole(self) -> RuleCall:
        """The dense MLP for the compiled loops."""
        ones = torch.ones_like(self.out_norm)
        return self._described("output", Choice(ones, least=float("-inf")))

    def _described(self, by: str, down: Choice, weights: MLPWeights | None = None, **more: Any) -> RuleCall:
        """A `RuleCall` of these weights, by default the MLP's own."""
        w = weights or self.weights
        given: dict[str, Any] = {"by": by, "down": down, "b_out": self.constant, "mean": self.mean}
        given |= {name: getattr(w, name) for name in ("W_gate", "b_gate", "W_in", "b_in", "W_out", "activation")}
        return RuleCall(**given | more)

    def _down(self, h: Tensor, keep: Tensor) -> Tensor:
        return sums(h - self.mean, self.weights.W_out, keep) + self.constant

    def _up(self, x: Tensor, keep: Tensor) -> Tensor:
        return dots(x, self.weights.W_in, keep, self.weights.b_in)

    def _chosen(self, x: Tensor, keep: Tensor) -> Tensor:
        """Return the activations [n, f] of the kept neurons."""
        u = self._up(x, keep)
        if self.weights.W_gate is None:
            return self.act(u)
        return self.act(dots(x, self.weights.W_gate, keep, self.weights.b_gate)) * u

    def _observed(self, kept: Kept) -> None:
        if self.observe is not None:
            self.observe(kept)

    def _size(self) -> int:
        """FLOPs of one matrix."""
        return 2 * self.f * self.d
