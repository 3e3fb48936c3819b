"""The quality of a coder: sums over documents, and the figures computed from them.

Shapes: n tokens, d width of the target, s latents, g document slots, r resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional import Interval
from slms.metrics.states import Sums
from slms.sae.sparse import Picks

ABLATIONS = ("zero", "mean")


class Quality(NamedTuple):
    """A coder's figures; all but the last two have a 95 % bootstrap interval over documents."""

    l0: Interval
    """Number of latents that a token uses."""
    fvu: Interval
    """Σ‖y − ŷ‖² / Σ‖y − ȳ‖²; predicting the mean scores 1."""
    ce: Interval
    """Loss with ŷ in place of y, in nats per token."""
    ce_clean: Interval
    """Loss of the unchanged model, in nats per token."""
    ce_ablated: dict[str, Interval]
    """Loss with the site ablated to zero or to its mean, in nats per token."""
    recovered: dict[str, Interval]
    """(CE_ablated − CE) / (CE_ablated − CE_clean), with the site ablated to zero or to its mean."""
    kl: Interval
    """KL(model ‖ model with ŷ in place of y), in nats per token."""
    dead: float
    """Share of latents that no token used."""
    density: Tensor
    """Share of tokens that use each latent, [s]."""


class CoderQuality(Sums):
    """Sums squares, losses and uses in float64; since it holds only sums, it is exact under DDP.

    The mean of y enters as a difference of sums, which is accurate in float64 for FVU above 1e-6. Document i is added
    to slot i modulo `n_slots`.
    """

    sums: Tensor
    total: Tensor
    uses: Tensor
    SUMS = ("tokens", "error", "square", "used", "predicted", "ce", "ce_clean", "ce_zero", "ce_mean", "kl")

    def __init__(self, d: int, d_sae: int, n_slots: int = 1024):
        super().__init__()
        self.n_slots = n_slots
        self.add_state("sums", torch.zeros(n_slots, len(self.SUMS), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(n_slots, d, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("uses", torch.zeros(d_sae, dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, name: str, documents: Tensor, values: Tensor) -> None:
        self.sums[:, self.SUMS.index(name)].index_add_(0, documents % self.n_slots, values.double())

    def update(self, y: Tensor, output: Tensor, picks: Picks, values: Tensor, documents: Tensor) -> None:
        """Add n tokens: y and ŷ [n, d], the latents in use with their values, and the tokens' documents [n]."""
        y, output, on = y.double(), output.double(), values > 0
        self._add("tokens", documents, torch.ones_like(documents))
        self._add("error", documents, (y - output).square().sum(1))
        self._add("square", documents, y.square().sum(1))
        self._add("used", documents, on.new_zeros(len(y), dtype=torch.int64).index_add_(0, picks.rows, on.long()))
        self.total.index_add_(0, documents % self.n_slots, y)
        self.uses += picks.indices[on].bincount(minlength=len(self.uses))

    def update_losses(self, documents: Tensor, **nats: Tensor) -> None:
        """Add predicted tokens [n] of `documents` [n]: `ce`, `ce_clean`, and `ce_zero`, `ce_mean` and `kl` if known."""
        self._add("predicted", documents, torch.ones_like(documents))
        for name, values in nats.items():
            self._add(name, documents, values)

    def fvu(self) -> Tensor:
        """Return Σ‖y − ŷ‖² / Σ‖y − ȳ‖²."""
        return _fvu(self.sums.sum(0), self.total.sum(0))

    def recovered(self, ablation: str = "zero") -> Tensor:
        """Return the share of the loss added by ablating the site that ŷ recovers."""
        return _recovered(self.sums.sum(0), ablation)

    def compute(self, n_resamples: int = 1000, seed: int = 0) -> Quality:
        """Return every figure with its interval."""
        used = self.sums[:, 0] > 0
        sums, total = self.sums[used], self.total[used]
        drawn = torch.randint(len(sums), (n_resamples, len(sums)), generator=torch.Generator().manual_seed(seed))
        times = torch.zeros(n_resamples, len(sums), dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        all_sums, all_total = sums.sum(0), total.sum(0)
        some_sums, some_total = times.to(sums.device) @ sums, times.to(sums.device) @ total

        def interval(figure, n: str = "predicted") -> Interval:
            low, high = torch.quantile(figure(some_sums, some_total), torch.tensor([0.025, 0.975]).double()).tolist()
            return Interval(float(figure(all_sums, all_total)), low, high, int(all_sums[self.SUMS.index(n)]))

        def mean(name: str, over: str = "predicted"):
            i, j = self.SUMS.index(name), self.SUMS.index(over)
            return lambda sums, _: sums[..., i] / sums[..., j]

        tokens = float(all_sums[0])
        return Quality(
            l0=interval(mean("used", "tokens"), "tokens"),
            fvu=interval(_fvu, "tokens"),
            ce=interval(mean("ce")),
            ce_clean=interval(mean("ce_clean")),
            ce_ablated={a: interval(mean(f"ce_{a}")) for a in ABLATIONS},
            recovered={a: interval(lambda sums, _, a=a: _recovered(sums, a)) for a in ABLATIONS},
            kl=interval(mean("kl")),
            dead=float((self.uses == 0).double().mean()),
            density=self.uses / tokens,
        )


def _column(sums: Tensor, name: str) -> Tensor:
    return sums[..., CoderQuality.SUMS.index(name)]


def _fvu(sums: Tensor, total: Tensor) -> Tensor:
    variance = _column(sums, "square") - total.square().sum(-1) / _column(sums, "tokens")
    return _column(sums, "error") / variance


def _recovered(sums: Tensor, ablation: str) -> Tensor:
    ablated = _column(sums, f"ce_{ablation}")
    return (ablated - _column(sums, "ce")) / (ablated - _column(sums, "ce_clean"))
