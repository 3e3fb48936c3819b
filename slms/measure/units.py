"""Reads the units of a model during its forward pass: neurons, pathways of routed MLPs, latents of sparse coders.

Shapes: b blocks, t position, n tokens (b·t), u units, f neurons, d model.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.journal import Journal
from slms.metrics.activations import Rows
from slms.models.activations import mlp_inputs, neuron_activations, run_up_to
from slms.models.anatomy import find_mlps, list_layers
from slms.models.pair import Models, models_of
from slms.models.place import place_name
from slms.models.routed import record_routes, routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.models.sites import Site, read_sites
from slms.models.token_loss import ROOM
from slms.models.weights import neurons, read_mlp
from slms.sae.evaluate import Placed, measured_tokens

SAMPLE_TOKENS = 4096


class Activity(NamedTuple):
    """How the units of one place respond to one batch."""

    strength: Tensor
    """[n, u], at least 0: how strongly a unit responds"""
    on: Tensor
    """bool [n, u]"""
    activations: Tensor
    """[n, f] activations whose sparsity and co-activation are measured: the units' own, or of pathways' neurons"""
    executed: Tensor
    """[n, f] the same as the model uses them: gated, and 0 where a pathway is skipped"""
    kept: Tensor | None = None
    """bool [n], which tokens count; None if all do"""


class UnitReader(Protocol):
    """Finds units and reads how a batch activates them."""

    kind: str
    places: Mapping[str, int]
    """name (`L3.mlp`, or that of a coder) → number of units u"""
    n_activations: Mapping[str, int]
    """name → f of `Activity.activations`"""
    out_norm: Mapping[str, Tensor]
    """name → [f], how far one unit of each activation moves the residual stream"""
    partition: Mapping[str, Tensor]
    """name → int64 [f], the given communities; empty if there are none"""
    model: PreTrainedModel
    forward_seconds: float
    """CPU time of the model's own forward passes so far, without the embedding head if it is not needed"""

    def read(self, input_ids: Tensor) -> dict[str, Activity]:
        """Run the model on token blocks [b, t]."""


class NeuronReader:
    """Reads neurons at the input of the down-projection; each is on at the share of tokens where its |a| is largest.

    A fixed share makes neurons, layers and activation functions comparable. At a fixed threshold, 10 % of one model's
    neurons would be on and 60 % of another's, and SI grows with the rate. A ReLU neuron that is active less often than
    the share is on whenever it is active.

    Args:
        blocks: the text from which the thresholds are sampled.
        layers: layer indices; None means all.
        share: share of tokens at which a neuron is on.
        journal: journal of this model and text; it keeps the thresholds under `name`.
    """

    kind = "neurons"

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Blocks,
        layers: Sequence[int] | None = None,
        share: float = 0.1,
        journal: Journal | None = None,
        name: str = "",
    ):
        if not 0 < share < 1:
            raise ValueError(f"--active_share {share}: it must lie between 0 and 1")
        infos = [layer for layer in list_layers(model) if layers is None or layer.index in layers]
        self.model, self.names = model, {layer.index: place_name(layer.index) for layer in infos}
        self.forward_seconds = 0.0
        self.places: Mapping[str, int] = {self.names[layer.index]: layer.d_ff for layer in infos}
        self.n_activations: Mapping[str, int] = self.places
        self.out_norm: Mapping[str, Tensor] = out_norms(model, self.names)
        self.partition: Mapping[str, Tensor] = {}
        journal, about = journal or Journal(), {"share": share, "places": list(self.places)}

        def measured() -> tuple[dict[str, Tensor], float]:
            start = time.process_time()
            sample = self._sample(blocks, journal, name, about)
            return {place: _quantile(a.abs(), 1 - share) for place, a in sample.items()}, time.process_time() - start

        self.thresholds, self.sampling_seconds = journal.part(f"{name} thresholds", measured, **about)

    def _sample(self, blocks: Blocks, journal: Journal, name: str, about: dict[str, Any]) -> dict[str, Tensor]:
        """The activations on blocks that are spread evenly over the text."""
        n_blocks = min(len(blocks.input_ids), max(SAMPLE_TOKENS // blocks.input_ids.shape[1], 1))
        rows = np.linspace(0, len(blocks.input_ids) - 1, n_blocks).round().astype(int)
        sums = {place: Rows() for place in self.places}
        starts = range(0, n_blocks, 4)
        for start in journal.through(f"{name} sample", starts, list(sums.values()), f"{name}: sampling", **about):
            picked = rows[start : start + 4]
            ids = torch.from_numpy(blocks.input_ids[picked].astype(np.int64))
            real = torch.ones(ids.numel(), dtype=torch.bool)
            if blocks.doc_ids is not None:
                real = torch.from_numpy(blocks.doc_ids[picked] >= 0).flatten()
            for place, a in self._activations(ids).items():
                sums[place].update(a[real.to(a.device)])
        return {place: rows.compute() for place, rows in sums.items()}

    def _activations(self, input_ids: Tensor) -> dict[str, Tensor]:
        with neuron_activations(self.model, self.names) as found:
            self.forward_seconds += run_body(self.model, input_ids, max(self.names))
        return {name: found[index].float() for index, name in self.names.items()}

    def read(self, input_ids: Tensor) -> dict[str, Activity]:
        """Run the model on token blocks [b, t]."""
        activity = {}
        for name, a in self._activations(input_ids).items():
            strength = a.abs()
            activity[name] = Activity(strength, strength > self.thresholds[name], a, a)
        return activity


class PathwayReader:
    """Reads pathways of the routed MLPs; a pathway is on where it is chosen, the stronger the higher its router score.

    `activations` are those that all neurons would have. If skipped pathways were 0, neurons of one pathway would go
    together because they are skipped together, whatever they do.
    """

    kind = "pathways"

    def __init__(self, model: PreTrainedModel):
        self.mlps = routed_modules(model, RoutedMLP)
        if not self.mlps:
            raise ValueError("--units pathways: all MLPs of the model are dense, none is routed")
        self.model, self.names = model, {mlp.layer_index: place for place, mlp in self.mlps.items()}
        self.forward_seconds = 0.0
        self.places: Mapping[str, int] = {place: mlp.config.n_pathways for place, mlp in self.mlps.items()}
        self.n_activations: Mapping[str, int] = {place: len(mlp.permutation) for place, mlp in self.mlps.items()}
        self.out_norm: Mapping[str, Tensor] = out_norms(model, self.names)
        self.partition: Mapping[str, Tensor] = {place: mlp.pathway_of_neuron() for place, mlp in self.mlps.items()}

    def read(self, input_ids: Tensor) -> dict[str, Activity]:
        """Run the model on token blocks [b, t]."""
        with record_routes(self.model) as routes, mlp_inputs(self.model, self.names) as inputs:
            self.forward_seconds += run_body(self.model, input_ids, max(self.names))
        activity = {}
        for index, place in self.names.items():
            mlp, found = self.mlps[place], routes[place]
            a = neurons(read_mlp(mlp), inputs[index]).float()
            strength = torch.where(found.chosen, 1 + found.scores.sigmoid(), 0.0)
            activity[place] = Activity(strength, found.chosen, a, mlp.weigh_dense(a, found))
        return activity


class LatentReader:
    """Reads latents of a sparse coder at its place; a latent is on where it is positive, at the coder's tokens."""

    kind = "features"

    def __init__(self, lm: Models, coder: Placed, W_dec: Tensor, name: str, site: Site, special: Tensor):
        self.lm, self.coder, self.site, self.special = lm, coder, site, special
        self.model = next(iter(models_of(lm).values()))  # of two, the one whose embedding is looked at
        self.places: Mapping[str, int] = {name: len(W_dec)}
        self.n_activations: Mapping[str, int] = self.places
        self.out_norm: Mapping[str, Tensor] = {name: W_dec.detach().norm(dim=1)}
        self.partition: Mapping[str, Tensor] = {}
        self.name, self.forward_seconds = name, 0.0

    def read(self, input_ids: Tensor) -> dict[str, Activity]:
        """Run the model on token blocks [b, t]."""
        start = time.process_time()
        x = read_sites(self.lm, input_ids, [self.site])[self.site.name]
        self.forward_seconds += time.process_time() - start
        kept = measured_tokens(input_ids, x, self.special, self.coder.longest)
        latents = x.new_zeros(len(x), self.places[self.name])
        picks, values = self.coder.latents(x[kept])
        latents[kept.nonzero()[:, 0][picks.rows], picks.indices] = values.clamp(min=0)
        return {self.name: Activity(latents, latents > 0, latents, latents, kept)}


def run_body(model: PreTrainedModel, input_ids: Tensor, last: int) -> float:
    """Run a forward pass up to layer `last`, beyond which no unit needs anything; returns its CPU seconds."""
    start = time.process_time()
    run_up_to(model, input_ids, last)
    return time.process_time() - start


@torch.no_grad()
def logits_seconds(model: PreTrainedModel, n_tokens: int) -> float:
    """Estimate, from a part, the CPU seconds for the logits of `n_tokens` tokens, which `run_body` leaves out."""
    head = model.get_output_embeddings()
    timed = max(1, min(4096, ROOM // len(head.weight)))
    x = torch.randn(timed, head.weight.shape[1], dtype=head.weight.dtype, device=head.weight.device)
    start = time.process_time()
    head(x)
    return (time.process_time() - start) * n_tokens / timed


def out_norms(model: PreTrainedModel, names: Mapping[int, str]) -> dict[str, Tensor]:
    """By place, the norms ‖w_out,i‖ [f] of the MLP's neurons; `names` maps layer → place."""
    mlps = find_mlps(model)
    return {place: read_mlp(mlps[layer]).W_out.norm(dim=1) for layer, place in names.items()}


def _quantile(x: Tensor, q: float) -> Tensor:
    """A value [f] that about a share q of each column of x [n, f] does not exceed."""
    k = min(int(q * len(x)), len(x) - 1)
    if x.device.type == "cpu":  # partial sorts of NumPy are several times as fast as torch's
        columns = x.T.contiguous().numpy()
        columns.partition(k, axis=1)
        return torch.from_numpy(columns[:, k].copy())
    return x.kthvalue(k + 1, dim=0).values
