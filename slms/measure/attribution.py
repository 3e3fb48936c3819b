"""Which pathways of a routed model write which latents of a coder of its residual stream or MLP output.

A latent's pre-activation x·w + b is linear in what the coder reads, which is a sum of the earlier residual stream, what
attention adds and what each pathway adds. So the rise of x·w at the latent's uses, over its mean at all tokens, is a
sum too, and the part that a pathway's output brings is exact. Layers between a pathway and the site are skipped: only
what the pathway adds directly counts.

Shapes: n tokens, z uses, d model, f neurons of a routed MLP, p pathways, m neurons of a pathway, s latents.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.measure.features import Uses
from slms.models.place import place_name
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.models.sites import Site, read_sites
from slms.models.weights import read_mlp
from slms.sae.sparse import Picks, spmm_t


class Concentration(NamedTuple):
    """How far the rise of latents concentrates in single pathways, against random groups of the same neurons."""

    value: float
    """mean over latents of the largest pathway's part over the layer's, weighted by the layer's part"""
    null_mean: float
    """mean value when neurons are dealt at random to groups of the same sizes"""
    null_sd: float
    z: float


class LayerAttribution(NamedTuple):
    """What the pathways of one layer write."""

    layer: int
    load: Tensor
    """[p] share of tokens that choose the pathway"""
    part: Tensor
    """[p, s] share that the pathway brings of the rise of the latent's pre-activation at its uses; NaN if never used"""
    z: Tensor
    """[p, s] that part over its sd when the pathway's outputs are shuffled among the tokens"""
    lift: Tensor
    """[p, s] p(pathway chosen | latent used) / p(pathway chosen)"""
    concentration: Concentration


def contributing_layers(model: PreTrainedModel, site: Site) -> list[int]:
    """The routed layers whose pathways add directly to what is read at `site`."""
    layers = [mlp.layer_index for mlp in routed_modules(model, RoutedMLP).values()]
    if site.kind == "residual":
        return [layer for layer in layers if layer <= site.layer]
    return [layer for layer in layers if layer == site.layer] if site.kind == "mlp_out" else []


def main_pathways(found: LayerAttribution, bound: float) -> Tensor:
    """The pathway, int64 [s], that brings most of each latent's rise; −1 if none does so with z above `bound`."""
    part = torch.where(found.z > bound, found.part, -torch.inf).nan_to_num(nan=-torch.inf)
    best = part.max(0)
    return torch.where(best.values > 0, best.indices, -1)


class PathwayAttribution:
    """Sums what pathways write over a stream of tokens, in constant memory (8·s·(f + d) bytes for each layer).

    Args:
        model: a routed model.
        site: what the coder reads, a residual stream or an MLP output.
        W_enc: [s, d].
    """

    def __init__(self, model: PreTrainedModel, site: Site, W_enc: Tensor):
        self.model, self.site, self.W_enc = model, site, W_enc.double()
        s, d = W_enc.shape
        self.n = 0
        self.uses = torch.zeros(s, dtype=torch.float64)
        self.x_used, self.x_all = torch.zeros(s, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
        mlps = routed_modules(model, RoutedMLP)
        self.layers = {i: _LayerSums(mlps[place_name(i)], s) for i in contributing_layers(model, site)}

    @torch.no_grad()
    def update(self, uses: Uses) -> None:
        """Add one batch; the model runs on it once more to read the neurons of the routed layers."""
        sites = [Site("neurons", layer) for layer in self.layers]
        found = read_sites(self.model, uses.batch["input_ids"], [*sites, self.site])
        order = uses.rows.cumsum(0) - 1
        tokens, n, s = order[uses.tokens], int(uses.rows.sum()), len(self.uses)
        offsets = torch.nn.functional.pad(torch.bincount(tokens, minlength=n).cumsum(0), (1, 0))
        picks = Picks(uses.latents, offsets, s)
        ones = torch.ones(len(tokens), dtype=torch.float64)
        x = found[self.site.name][uses.rows].double()
        self.n += n
        self.uses += torch.bincount(uses.latents, minlength=s)
        self.x_used += spmm_t(picks, ones, x)
        self.x_all += x.sum(0)
        for layer, sums in self.layers.items():
            sums.update(found[f"neurons.{layer}"][uses.rows].double(), picks, ones)

    def compute(self, n_nulls: int = 100, seed: int = 0) -> list[LayerAttribution]:
        """The parts of every layer, with both nulls."""
        rise = (self.x_used * self.W_enc).sum(1) / self.uses - self.W_enc @ self.x_all / self.n
        generator = torch.Generator().manual_seed(seed)
        return [
            sums.compute(layer, self.W_enc, self.uses, self.n, rise, n_nulls, generator)
            for layer, sums in self.layers.items()
        ]


class _LayerSums:
    """Sums for one routed layer, with its neurons in pathway order."""

    def __init__(self, mlp: RoutedMLP, s: int):
        self.order, self.offsets = mlp.permutation, mlp.offsets
        self.W_out = read_mlp(mlp).W_out[self.order].double()
        f = len(self.W_out)
        self.used, self.all = torch.zeros(s, f, dtype=torch.float64), torch.zeros(f, dtype=torch.float64)
        self.squares = [torch.zeros(m, m, dtype=torch.float64) for m in torch.tensor(self.offsets).diff().tolist()]
        self.chosen = torch.zeros(len(self.squares), dtype=torch.float64)
        self.together = torch.zeros(len(self.squares), s, dtype=torch.float64)

    def update(self, neurons: Tensor, picks: Picks, ones: Tensor) -> None:
        neurons = neurons[:, self.order]
        self.used += spmm_t(picks, ones, neurons)
        self.all += neurons.sum(0)
        blocks = neurons.split(torch.tensor(self.offsets).diff().tolist(), dim=1)
        # A pathway that was not chosen leaves exact zeros.
        chosen = torch.stack([block.any(1) for block in blocks], dim=1).double()
        self.chosen += chosen.sum(0)
        self.together += spmm_t(picks, ones, chosen).T
        for square, block in zip(self.squares, blocks, strict=True):
            square += block.T @ block

    def compute(
        self, layer: int, W_enc: Tensor, uses: Tensor, n: int, rise: Tensor, n_nulls: int, generator: torch.Generator
    ) -> LayerAttribution:
        reach = self.W_out @ W_enc.T  # [f, s] what a unit of a neuron adds to the pre-activation
        of_neuron = (self.used.T / uses - self.all[:, None] / n) * reach  # [f, s] each neuron's part of the rise
        group = torch.arange(len(self.squares)).repeat_interleave(torch.tensor(self.offsets).diff())
        excess = _grouped(of_neuron, group)
        variance = []
        for i, square in enumerate(self.squares):
            rows = slice(self.offsets[i], self.offsets[i + 1])
            mean = self.all[rows] / n
            covariance = square / n - torch.outer(mean, mean)
            variance.append(torch.einsum("ms,mk,ks->s", reach[rows], covariance, reach[rows]))
        # The mean of `uses` values drawn without replacement from the n of all tokens.
        sd = (torch.stack(variance).clamp(min=0) * (n - uses) / (max(n - 1, 1) * uses)).sqrt()
        null = torch.tensor(
            [_largest(of_neuron, group[torch.randperm(len(group), generator=generator)]) for _ in range(n_nulls)]
        )
        value, null_mean, null_sd = _largest(of_neuron, group), float(null.mean()), float(null.std())
        z = (value - null_mean) / null_sd if null_sd > 0 else torch.nan
        return LayerAttribution(
            layer=layer,
            load=self.chosen / n,
            part=excess / rise,
            z=excess / sd,
            lift=(self.together / uses) / (self.chosen / n)[:, None],
            concentration=Concentration(value, null_mean, null_sd, z),
        )


def _grouped(of_neuron: Tensor, group: Tensor) -> Tensor:
    """Sums [p, s] over the neurons [f, s] of each group."""
    return of_neuron.new_zeros(int(group.max()) + 1, of_neuron.shape[1]).index_add_(0, group, of_neuron)


def _largest(of_neuron: Tensor, group: Tensor) -> float:
    """Σ_s max_p |part| / Σ_s Σ_p |part|: 1 if one group alone moves each latent, 1/p if all move it alike."""
    parts = _grouped(of_neuron, group).abs().nan_to_num(0.0)
    return float(parts.amax(0).sum() / parts.sum().clamp(min=1e-300))
