"""Rules that give all tokens of a text one set of neurons, cut out into a smaller MLP: the control, and GRIFFIN.

Shapes: b blocks, t position, n tokens, d model, f neurons.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slms.kernels.cpu.rule_rows import Choice, RuleCall, RuleMLP
from slms.kernels.neurons import can_skip
from slms.models.dynamic.mlp import Kept
from slms.models.dynamic.neuron_rules import Oracle
from slms.models.dynamic.thresholds import largest
from slms.models.weights import MLPWeights, neurons


class Static(Oracle):
    """The control: keeps the same k neurons for every token, those of largest E[importance²] on calibration tokens."""

    kind = "set"
    dense_prompts = False

    def fit(self, x: Tensor, h: Tensor) -> None:
        self.score = self.importance(h).square().mean((0, 1))

    def set(self, density: float) -> None:
        self.hold(largest(self.score, self.k))

    def hold(self, chosen: Tensor) -> None:
        """Copy out the neurons [f] bool that every token executes from now on."""
        self.chosen, self.compact, self._compiled = chosen, compacted(self.weights, chosen), None
        self.rest = self.constant - self.mean[chosen] @ self.compact.W_out

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        return self.chosen.expand(*x.shape[:-1], self.f)

    def skipping(self, x: Tensor) -> Tensor:
        return torch.addmm(self.rest, neurons(self.compact, x), self.compact.W_out)

    def call(self) -> RuleCall:
        ones = torch.ones_like(self.compact.W_out[:, 0])  # the loops choose all of the smaller MLP
        smaller: dict[str, Any] = {"weights": self.compact, "b_out": self.rest, "mean": torch.zeros_like(ones)}
        return self._described("output", Choice(ones), **smaller)

    def flops(self, kept: Kept) -> float:
        return self.dense_flops() * kept.neurons


class GRIFFIN(Static):
    """Keeps the k neurons that a prompt used most (GRIFFIN, arXiv:2404.01365): a dense prompt, then one set a sequence.

    The statistic is the ℓ2 norm over the prompt of a neuron's share of the token's activation, ‖h_ti / ‖h_t‖‖. While
    masking, the first half of each block is the prompt. When executing, a call with several positions is a prompt, and
    calls with one position use its set.
    """

    dense_prompts = True

    def fit(self, x: Tensor, h: Tensor) -> None:
        self.sets: Tensor | None = None

    def set(self, density: float) -> None:
        self.sets = None

    def prompt_set(self, h: Tensor) -> Tensor:
        """Return the neurons [b, 1, f] bool to keep after prompts with activations h [b, t, f]."""
        share = F.normalize(h - self.mean, dim=-1)
        return largest(share.square().sum(1, keepdim=True), self.k)

    def prompt(self, x: Tensor) -> int:
        return x.shape[1] // 2

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        return self.prompt_set(h[:, : self.prompt(x)]).expand_as(h)

    def one_token(self) -> RuleMLP | None:
        return super().one_token() if self.sets is not None and len(self.sets) == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.masking:
            return self.scored(x)
        if x.shape[1] > 1:
            return self._prefill(x)
        if self.sets is None or len(self.sets) != len(x):
            return self.dense(x)
        if len(x) == 1:
            return self.execute(x[0]).view(x.shape)
        if not can_skip(x, len(x)):
            return self.dense(x)
        keep, x_flat = self.sets[:, 0], x[:, 0]
        return self._down(self._chosen(x_flat, keep), keep).view(x.shape)

    def _prefill(self, x: Tensor) -> Tensor:
        h = neurons(self.weights, x)
        self.sets = self.prompt_set(h)
        if len(x) == 1:  # of one sequence, the neurons are copied out once; later tokens run a smaller MLP
            self.hold(self.sets[0, 0])
        return F.linear(h, self.weights.W_out.t(), self.weights.b_out)


def compacted(weights: MLPWeights, chosen: Tensor) -> MLPWeights:
    """Return the MLP of only the chosen neurons [f], with copies of their rows."""

    def rows(w: Tensor | None) -> Tensor | None:
        return None if w is None else w[chosen]

    return MLPWeights(
        W_in=weights.W_in[chosen],
        W_out=weights.W_out[chosen],
        b_in=rows(weights.b_in),
        b_out=weights.b_out,
        W_gate=rows(weights.W_gate),
        b_gate=rows(weights.b_gate),
        activation=weights.activation,
    )
