"""Measures the sparsity of streams of MLP activations, and draws the tokens behind the co-activation graph.

Shapes: n tokens, f neurons, r tokens kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from slms.metrics.functional import ActivationSparsity, Interval, LegacySparsity, jackknife, sparsity_per_token
from slms.metrics.states import Sums
from slms.metrics.units import N_GROUPS

_HEAD = 4  # columns of a kept token that precede its activations


class LayerSparsity(NamedTuple):
    value: ActivationSparsity
    half_width: ActivationSparsity
    """half-width of the 95 % intervals over documents (delete-a-group jackknife); NaN with fewer than two groups"""
    legacy: LegacySparsity
    n: int
    """tokens"""

    def numbers(self) -> dict[str, float | Interval]:
        """By name, what the neurons score with intervals, then `frac_legacy` and `pr_legacy`."""
        found: dict[str, float | Interval] = {}
        for name, value, half in zip(self.value._fields, self.value, self.half_width, strict=True):
            found[name] = Interval(float(value), float(value - half), float(value + half), self.n)
        return found | {f"{name}_legacy": float(value) for name, value in self.legacy._asdict().items()}


class SparsitySums(Sums):
    """Sums the activation sparsity of one layer over a stream; exact under DDP, in constant memory.

    Args:
        out_norm: [f], ‖w_out,i‖ of the neurons; None means 1 for all.
        threshold: the legacy `frac` counts the activations above it.
        mass: share of the contributions that `top_mass` must hold.
    """

    out_norm: Tensor | None
    measures: Tensor
    defined: Tensor
    legacy_sums: Tensor

    def __init__(self, out_norm: Tensor | None = None, threshold: float = 0.0, mass: float = 0.9) -> None:
        super().__init__()
        self.threshold, self.mass = threshold, mass
        self.register_buffer("out_norm", out_norm, persistent=False)
        self.add_state("measures", torch.zeros(N_GROUPS, 5, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("defined", torch.zeros(N_GROUPS, 5, dtype=torch.int64), dist_reduce_fx="sum")
        # activations above the threshold, all activations, Σ a⁺, Σ (a⁺)²
        self.add_state("legacy_sums", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, activations: Tensor, doc_ids: Tensor) -> None:
        """Add the activations [n, f] of real tokens, which belong to documents [n]."""
        measures = sparsity_per_token(activations, self.out_norm, self.mass)
        group = doc_ids % N_GROUPS
        self.measures.index_add_(0, group, measures.nan_to_num(0.0))
        self.defined.index_add_(0, group, (~measures.isnan()).long())
        positive = activations.float().clamp(min=0)
        above = (activations > self.threshold).float().sum(-1).sum(dtype=torch.float64)
        count = above.new_tensor(activations.numel())
        squares = positive.square().sum(-1).sum(dtype=torch.float64)
        self.legacy_sums += torch.stack([above, count, positive.sum(-1).sum(dtype=torch.float64), squares])

    def compute(self) -> LayerSparsity:
        some = self.defined.sum(1) > 0
        measures, defined = self.measures[some], self.defined[some]
        left_out = (measures.sum(0) - measures) / (defined.sum(0) - defined)
        above, count, total, squares = self.legacy_sums
        return LayerSparsity(
            value=ActivationSparsity(*(measures.sum(0) / defined.sum(0))),
            half_width=ActivationSparsity(*jackknife(left_out)),
            legacy=LegacySparsity(frac=above / count, pr=total.square() / squares),
            n=int(self.defined[:, -1].sum()),
        )


class CoActivation(Sums):
    """Draws a fixed number of tokens evenly from a stream of activations, for `modularity` and `partition_modularity`.

    It keeps the r tokens with the smallest hash of (seed, document, position), so it keeps the same tokens in any order
    and on any number of processes, in constant memory. Q needs tokens rather than a running Gram matrix, because its
    null shuffles each neuron's tokens, and must have as many tokens as the graph and the same heavy tails.
    """

    kept: Tensor

    def __init__(self, n_neurons: int, n_kept: int = 4096, seed: int = 0) -> None:
        super().__init__()
        self.n_neurons, self.n_kept, self.seed = n_neurons, n_kept, seed
        # Columns: hash (two of 24 bits, exact in float32), document group, token id, activations. They are one state,
        # so that it merges.
        empty = torch.zeros(n_kept, _HEAD + n_neurons)
        empty[:, 0] = torch.inf
        self.add_state("kept", empty, dist_reduce_fx=self._smallest)

    def update(self, activations: Tensor, doc_ids: Tensor, positions: Tensor, token_ids: Tensor | None = None) -> None:
        """Offer the activations [n, f] of real tokens, which documents [n] and positions [n] identify.

        token_ids: [n], below 2^24; `tokens` returns them.
        """
        high, low = _hash(doc_ids, positions, self.seed)
        # Only tokens that would be kept are copied: after the first r, few are.
        admitted = high <= self.kept[:, 0].max()
        ids = torch.zeros_like(high) if token_ids is None else token_ids.float()
        columns = [high, low, (doc_ids % N_GROUPS).float(), ids]
        offered = torch.cat([torch.stack(columns, dim=1)[admitted], activations[admitted].float()], dim=1)
        self.kept = self._smallest(torch.cat([self.kept, offered])[None])

    def _smallest(self, tables: Tensor) -> Tensor:
        """The r rows with the smallest hash in stacked tables [processes, rows, 4 + f]."""
        rows = tables.flatten(0, 1)
        key = rows[:, 0].double() * 2**24 + rows[:, 1].double()
        return rows[key.argsort(stable=True)[: self.n_kept]]

    def compute(self) -> tuple[Tensor, Tensor]:
        """Activations [≤ r, f] and the document group [≤ r] of each, ready for `modularity`."""
        kept = self.kept[self.kept[:, 0].isfinite()]
        return kept[:, _HEAD:], kept[:, 2].long()

    def tokens(self) -> Tensor:
        """The token ids [≤ r] of the rows that `compute` returns."""
        return self.kept[self.kept[:, 0].isfinite(), 3].long()


class Rows(Sums):
    """Keeps all rows of a stream of activations, in order; its memory grows with them."""

    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, rows: Tensor) -> None:
        """Append rows [n, f]."""
        self.rows.append(rows)

    def compute(self) -> Tensor:
        """All rows [all n, f]."""
        return dim_zero_cat(self.rows)


def _hash(doc_ids: Tensor, positions: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Hash (document, position) evenly to two floats of 24 bits by splitmix64's finaliser (Steele et al. 2014)."""
    x = doc_ids.long() * 0x9E3779B97F4A7C1 + positions.long() * 0x1000193 + (seed + 1) * 0x632BE59BD9B4E01
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    x = x ^ _shift(x, 31)
    return (_shift(x, 40)).float(), (_shift(x, 16) & 0xFFFFFF).float()


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right logically, because torch's shift keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
