"""Rules that choose a token's inputs of each matrix: TEAL and WINA, on an MLP's matrices; attention stays dense.

Leaving an input out skips a column of W_in, so a second, transposed copy of W_in (and W_gate) is kept.

Shapes: b blocks, t position, n tokens, d model, f neurons, v inputs of a matrix.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from slms.kernels.cpu.rule_rows import Choice, RuleCall
from slms.kernels.neurons import sums
from slms.models.dynamic.budget import cheapest_step
from slms.models.dynamic.mlp import DynamicMLP, Kept
from slms.models.dynamic.thresholds import largest, sampled, threshold_at
from slms.models.weights import neurons

LAST = 0.25
"""The last share of the positions of a block, on which TEAL's greedyopt.py measures errors (its `last_fraction`)."""


class InputRule(DynamicMLP):
    """Keeps some inputs of `gate`, `up` and `down`, by a share for each; as published, shares are found greedily."""

    kind = "inputs"

    def fit(self, x: Tensor, h: Tensor) -> None:
        w = self.weights
        self.matrices = ("gate", "up", "down") if self.gated else ("up", "down")
        self.x_mean = x.mean((0, 1)) * self.centre
        self.W_in_t, self.in_constant = w.W_in.t().contiguous(), F.linear(self.x_mean, w.W_in, w.b_in)
        if w.W_gate is not None:
            self.W_gate_t = w.W_gate.t().contiguous()
            self.gate_constant = F.linear(self.x_mean, w.W_gate, w.b_gate)
        last = x[:, int(x.shape[1] * (1 - LAST)) :]
        self.last = last[: max(1, 2**20 // (last.shape[1] * self.f))]
        self.shares: dict[str, float] = {}
        self.steps: list[dict[str, float]] = [dict.fromkeys(self.matrices, 0.0)]

    def set(self, density: float) -> None:
        self.share_out(dict.fromkeys(self.matrices, density))

    @abstractmethod
    def share_out(self, shares: dict[str, float]) -> None:
        """Keep these shares of the inputs of each matrix."""

    @abstractmethod
    def choice(self, matrix: str) -> Choice:
        """Describe what `choose` keeps."""

    @abstractmethod
    def choose(self, matrix: str, v: Tensor) -> Tensor:
        """Return which inputs v [..., v] of a matrix to keep, as a new bool mask."""

    @classmethod
    def spread(cls, mlps: Sequence[DynamicMLP], density: float) -> None:
        """Share each block's density out among its matrices, greedily (TEAL, arXiv:2408.14690, algorithm 1)."""
        for mlp in mlps:
            assert isinstance(mlp, InputRule)
            mlp.density = density
            mlp.share_out(mlp.greedy_shares(density))

    def greedy_shares(self, density: float) -> dict[str, float]:
        """Return the shares after the greedy step whose mean comes nearest to the density.

        Each step leaves out 5 % more of the matrix whose loss changes the block's output least: the norm of the change
        over the last positions, averaged over blocks and dimensions. An MLP's matrices are of one size, hence one step.
        """
        shares, target = self.shares, neurons(self.weights, self.last) @ self.weights.W_out

        def error(sparsities: dict[str, float]) -> float:
            self.share_out({name: 1 - sparsity for name, sparsity in sparsities.items()})
            h, _, keep = self._hidden(self.last, _masked_product)
            y = (h * keep) @ self.weights.W_out + self.mean @ self.weights.W_out
            return (y - target).norm(dim=1).mean().item()

        def mean(sparsities: dict[str, float]) -> float:
            return sum(sparsities.values()) / len(sparsities)

        while mean(self.steps[-1]) < 1 - density:
            self.steps.append(cheapest_step(error, self.steps[-1]))
        self.share_out(shares)
        best = min(self.steps, key=lambda step: abs(mean(step) - (1 - density)))
        return {name: 1 - sparsity for name, sparsity in best.items()}

    def _hidden(
        self, x: Tensor, product: Callable[[Tensor, Tensor, Tensor], Tensor], prompt: int = 0
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return h − μ from the chosen inputs, and what was chosen of x by matrix, and of h; a prompt keeps all."""
        x = x - self.x_mean

        def keep(matrix: str, v: Tensor) -> Tensor:
            chosen = self.choose(matrix, v)
            if prompt:
                chosen[:, :prompt] = True
            return chosen

        kept = [keep(name, x) for name in self.matrices[:-1]]
        u = product(x, self.W_in_t, kept[-1]) + self.in_constant
        h = self.act(product(x, self.W_gate_t, kept[0]) + self.gate_constant) * u if self.gated else self.act(u)
        h = h - self.mean
        return h, kept, keep("down", h)

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        return self._hidden(x, _masked_product)[2]

    def masked(self, x: Tensor) -> Tensor:
        prompt = self.prompt(x)
        h, keep_x, keep_h = self._hidden(x, _masked_product, prompt)
        inputs = sum(keep[:, prompt:].float().mean().item() for keep in keep_x) / len(keep_x)
        self._observed(Kept(inputs, keep_h[:, prompt:].float().mean().item()))
        return (h * keep_h) @ self.weights.W_out + self.constant

    def skipping(self, x: Tensor) -> Tensor:
        h, _, keep_h = self._hidden(x, sums)
        return sums(h, self.weights.W_out, keep_h) + self.constant

    def call(self) -> RuleCall:
        matrices: dict[str, Any] = {
            "W_in": self.W_in_t,
            "b_in": self.in_constant,
            "x_mean": self.x_mean,
            "up": self.choice("up"),
        }
        if self.gated:
            matrices |= {"W_gate": self.W_gate_t, "b_gate": self.gate_constant, "gate": self.choice("gate")}
        return self._described("inputs", self.choice("down"), **matrices)

    def flops(self, kept: Kept) -> float:
        return self.dense_flops() * self.share(kept)

    def share(self, kept: Kept) -> float:
        """Return the share of the MLP's weights that are read."""
        before = len(self.matrices) - 1
        return (before * kept.inputs + kept.neurons) / (before + 1)


def _masked_product(x: Tensor, W: Tensor, keep: Tensor) -> Tensor:
    return (x * keep) @ W


class TEAL(InputRule):
    """Keeps inputs of magnitude above a matrix's threshold, a quantile of calibration (TEAL, arXiv:2408.14690, §4.1).

    The authors' code takes the quantile (1 + sparsity) / 2 of the signed inputs, the same where these are symmetric.
    """

    def fit(self, x: Tensor, h: Tensor) -> None:
        super().fit(x, h)
        inputs = sampled((x - self.x_mean).abs())
        self.samples = {name: inputs for name in self.matrices} | {"down": sampled((h - self.mean).abs())}

    def share_out(self, shares: dict[str, float]) -> None:
        self.shares, self._compiled = shares, None
        self.thresholds = {name: threshold_at(self.samples[name], share) for name, share in shares.items()}

    def choose(self, matrix: str, v: Tensor) -> Tensor:
        return ~(v.abs() < self.thresholds[matrix])

    def choice(self, matrix: str) -> Choice:
        return Choice(self.out_norm.new_ones(self.f if matrix == "down" else self.d), least=self.thresholds[matrix])


class WINA(InputRule):
    """Keeps each token's inputs of largest magnitude times the norm of their column (WINA, arXiv:2505.19427, eq. 5).

    The columns keep their own norms; the paper's optional rotation of the weights, after which the norms of all but
    W_gate are 1, is not applied.
    """

    def fit(self, x: Tensor, h: Tensor) -> None:
        super().fit(x, h)
        w = self.weights
        self.norms = {"up": w.W_in.norm(dim=0), "down": self.out_norm}
        if w.W_gate is not None:
            self.norms["gate"] = w.W_gate.norm(dim=0)

    def share_out(self, shares: dict[str, float]) -> None:
        self.shares, self._compiled = shares, None
        self.counts = {name: int(share * len(self.norms[name]) + 1e-6) for name, share in shares.items()}

    def choose(self, matrix: str, v: Tensor) -> Tensor:
        return largest(v.abs() * self.norms[matrix], self.counts[matrix])

    def choice(self, matrix: str) -> Choice:
        return Choice(self.norms[matrix].contiguous(), self.counts[matrix])
