"""Rules that choose a token's neurons: by what they contribute, by their gates, or by a prediction of it.

Shapes: b blocks, t position, n tokens, d model, f neurons, q rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slms.kernels.cpu.rule_rows import Choice, RuleCall
from slms.metrics.functional import dropped_share, largest_within
from slms.models.dynamic.mlp import DynamicMLP, Kept
from slms.models.dynamic.predictor import fit_low_rank
from slms.models.dynamic.thresholds import largest, sampled, threshold_at
from slms.models.weights import neurons


class Oracle(DynamicMLP):
    """Keeps the k neurons of largest |h − μ|·‖w_out‖; the up-projection is dense, only the down-projection skips."""

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        return largest(self.importance(h), self.k)

    def importance(self, h: Tensor) -> Tensor:
        """Return how much each neuron adds to the output, ‖(h_i − μ_i) w_out_i‖."""
        return (h - self.mean).abs() * self.out_norm

    def skipping(self, x: Tensor) -> Tensor:
        h = neurons(self.weights, x)
        return self._down(h, self.keep(x, h))

    def call(self) -> RuleCall:
        return self._described("output", Choice(self.out_norm, self.k))

    def flops(self, kept: Kept) -> float:
        return self._size() * ((2 if self.gated else 1) + kept.neurons)


class CETT(Oracle):
    """Keeps neurons with ‖h_i w_out_i‖ above a layer's threshold; k varies.

    The published thresholds are those at which all layers have one CETT, ‖Σ_{skipped} h_i w_i‖ / ‖Σ h_i w_i‖ averaged
    over tokens (arXiv:2402.03804; bisected as in SparsingLaw, arXiv:2411.02335): layers then differ in density.
    """

    def fit(self, x: Tensor, h: Tensor) -> None:
        self.sample = sampled(self.importance(h))
        flat = (h - self.mean).flatten(0, 1)
        self.tokens = flat[:: -(-flat.numel() // 2**20)]
        self.errors: dict[float, float] = {0.0: 0.0}

    def error(self, skipped: float) -> float:
        """Return the CETT on calibration tokens when a share of the neurons is skipped."""
        if skipped not in self.errors:
            threshold = threshold_at(self.sample, 1 - skipped)
            self.errors[skipped] = dropped_share(self.tokens, self.weights.W_out, threshold)[0].mean().item()
        return self.errors[skipped]

    @classmethod
    def spread(cls, mlps: Sequence[DynamicMLP], density: float) -> None:
        """Give every MLP the density at which its CETT is the same as the others', for the mean density asked for."""
        layers = [mlp for mlp in mlps if isinstance(mlp, CETT)]
        size = sum(mlp.f for mlp in layers)

        def skipped(cett: float) -> list[float]:
            return [largest_within(mlp.error, cett, 0.0, 1 - 1 / mlp.f, steps=12) for mlp in layers]

        def share(cett: float) -> float:
            return sum(s * mlp.f for s, mlp in zip(skipped(cett), layers, strict=True)) / size

        cett = largest_within(share, 1 - density, 0.0, 1.0, steps=12)
        for mlp, s in zip(layers, skipped(cett), strict=True):
            mlp.density = 1 - s

    def set(self, density: float) -> None:
        self.threshold = threshold_at(self.sample, density)

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        return ~(self.importance(h) < self.threshold)

    def call(self) -> RuleCall:
        return self._described("output", Choice(self.out_norm, least=self.threshold))


class CATS(DynamicMLP):
    """Keeps neurons with |act(gate)| above a layer's threshold (CATS, arXiv:2404.08763); the gate runs dense."""

    kind = "gate"

    def fit(self, x: Tensor, h: Tensor) -> None:
        if not self.gated:
            raise ValueError("`rule` is cats; it needs a gated MLP (Llama, Mistral, Qwen, Gemma).")
        self.sample = sampled(self._gate(x).abs())

    def set(self, density: float) -> None:
        self.threshold = threshold_at(self.sample, density)

    def _gate(self, x: Tensor) -> Tensor:
        assert self.weights.W_gate is not None, "checked by fit"
        return self.act(F.linear(x, self.weights.W_gate, self.weights.b_gate))

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        return ~(self._gate(x).abs() < self.threshold)

    def skipping(self, x: Tensor) -> Tensor:
        gate = self._gate(x)
        keep = ~(gate.abs() < self.threshold)
        return self._down(gate * self._up(x, keep), keep)

    def call(self) -> RuleCall:
        return self._described("gate", Choice(torch.ones_like(self.out_norm), least=self.threshold))

    def flops(self, kept: Kept) -> float:
        return self._size() * (1 + 2 * kept.neurons)


class LowRank(Oracle):
    """Keeps the k neurons that a low-rank predictor expects to matter most; all else skips.

    Reduced-rank regression on calibration tokens, in closed form, predicts the pre-activations; the importance of
    `oracle` is computed from the predicted activations.
    """

    kind = "prediction"

    def fit(self, x: Tensor, h: Tensor) -> None:
        w = self.weights
        W = w.W_in if w.W_gate is None else torch.cat([w.W_in, w.W_gate])
        self.rank = max(1, self.d // 8)
        self.narrow, self.wide, self.shift = fit_low_rank(W, x.reshape(-1, self.d), self.rank)
        biases = [b if b is not None else w.W_in.new_zeros(self.f) for b in (w.b_in, w.b_gate)[: 1 + self.gated]]
        self.shift = self.shift + torch.cat(biases)
        self.narrow, self.wide = self.narrow.contiguous(), self.wide.contiguous()

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        u = F.linear(F.linear(x, self.narrow), self.wide, self.shift)
        predicted = self.act(u[..., self.f :]) * u[..., : self.f] if self.gated else self.act(u)
        return largest(self.importance(predicted), self.k)

    def skipping(self, x: Tensor) -> Tensor:
        keep = self.keep(x, x)
        return self._down(self._chosen(x, keep), keep)

    def call(self) -> RuleCall:
        predictor: dict[str, Any] = {"narrow": self.narrow, "wide": self.wide, "shift": self.shift}
        return self._described("prediction", Choice(self.out_norm, self.k), **predictor)

    def flops(self, kept: Kept) -> float:
        matrices = 3 if self.gated else 2
        return self._size() * matrices * kept.neurons + 2 * self.rank * (self.d + (matrices - 1) * self.f)
