"""Activation sparsity by layer: the prototype's numbers of an MLP's output, its neurons' sparsity, how few suffice.

Shapes: n tokens, f neurons, d model.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.journal import Journal
from slms.measure.passes import token_nll
from slms.measure.rows import MODEL, Row, row_of
from slms.metrics.activations import LayerSparsity, SparsitySums
from slms.metrics.functional import LegacySparsity, cett_threshold, largest_within
from slms.metrics.loss import DocumentLoss
from slms.models.activations import mlp_outputs, neuron_activations, run_up_to
from slms.models.anatomy import find_mlps
from slms.models.place import place_name
from slms.models.sites import Site, replaced
from slms.models.weights import read_mlp

CETT_TOKENS = 512  # tokens on which the thresholds of a CETT are found
STEPS = 7  # bisections of the CETT, to within 1/128


class Sufficient(NamedTuple):
    """The fewest neurons that keep perplexity within the tolerance."""

    kept: dict[int, float]
    """by layer, mean share of neurons executed"""
    cett: float
    """relative error of every layer's output, averaged over tokens (ProSparse, arXiv 2402.13516)"""
    perplexity: float
    """perplexity with only those neurons"""
    dense: float
    """perplexity with all of them"""


class Sparsity(NamedTuple):
    """The sparsity of a model's layers on one text."""

    neurons: dict[int, LayerSparsity]
    """by layer, at the input of the down-projection"""
    output: dict[int, LegacySparsity]
    """by layer, of the MLP's output"""
    sufficient: Sufficient

    def rows(self) -> list[Row]:
        """Return the numbers of every layer's MLP, then those of the model that keeps the fewest neurons in them."""
        rows, (kept, cett, perplexity, dense) = [], self.sufficient
        for i, layer in self.neurons.items():
            flat = self.output[i]._asdict() | {"kept": kept[i]}
            numbers = {(metric, ""): number for metric, number in flat.items()}
            numbers |= {("sparsity", family): number for family, number in layer.numbers().items()}
            rows += [row_of(place_name(i), *key, number, layer.n) for key, number in numbers.items()]
        whole = {("kept", ""): sum(kept.values()) / len(kept), ("cett", ""): cett}
        whole |= {("perplexity", "kept"): perplexity, ("perplexity", "dense"): dense}
        return rows + [row_of(MODEL, *key, number) for key, number in whole.items()]


@torch.no_grad()
def measure_sparsity(
    model: PreTrainedModel,
    blocks: Blocks,
    layers: Sequence[int],
    threshold: float = 0.0,
    tolerance: float = 0.01,
    batch_size: int = 8,
    progress: Callable[[str], object] = lambda step: None,
    journal: Journal | None = None,
) -> Sparsity:
    """Measure the sparsity of the layers on blocks whose padding has document −1.

    Args:
        threshold: the legacy `frac` counts the activations above it.
        tolerance: how much perplexity may rise for `sufficient`, which skips neurons whose contribution |a_i|·‖w_i‖ is
            below each layer's threshold, at the same CETT in all `layers`.
        progress: called before each step with its name.
        journal: journal of this model and these blocks, which keeps every pass over the text.
    """
    journal = journal or Journal()
    about = {"threshold": threshold, "batch_size": batch_size, "layers": list(layers)}
    mlps = find_mlps(model)
    weights = {i: read_mlp(mlps[i]).W_out.float() for i in layers}
    progress("sparsity")
    neurons, output = journal.part(
        "activity", lambda: _activity(model, blocks, weights, threshold, batch_size), **about
    )
    sufficient = _sufficient(model, blocks, weights, tolerance, batch_size, progress, journal, about)
    return Sparsity(neurons, output, sufficient)


def _activity(
    model: PreTrainedModel, blocks: Blocks, weights: Mapping[int, Tensor], threshold: float, batch_size: int
) -> tuple[dict[int, LayerSparsity], dict[int, LegacySparsity]]:
    """Measure the sparsity of the neurons and of the outputs in one pass over the text."""
    layers = list(weights)
    sums = {i: SparsitySums(weights[i].norm(dim=1), threshold).to(model.device) for i in layers}
    pooled = {i: torch.zeros(4, dtype=torch.float64) for i in layers}
    for ids, docs in _batches(blocks, batch_size):
        real = (docs >= 0).flatten()
        with neuron_activations(model, layers) as found, mlp_outputs(model, layers) as outputs:
            run_up_to(model, ids, max(layers))
        for i in layers:
            kept = found[i][real.to(found[i].device)]
            sums[i].update(kept.float(), docs.flatten()[real].to(kept.device))
            pooled[i] += _pooled(outputs[i].flatten(0, 1)[real.to(kept.device)], threshold)
    output = {
        i: LegacySparsity(p[0] / p[1], torch.where(p[3] > 0, p[2].square() / p[3], 0.0)) for i, p in pooled.items()
    }
    return {i: metric.compute() for i, metric in sums.items()}, output


def _sample(model: PreTrainedModel, blocks: Blocks, layers: Sequence[int], batch_size: int) -> dict[int, Tensor]:
    """By layer, the activations [n, f] of the first `CETT_TOKENS` tokens."""
    sample: dict[int, list[Tensor]] = {i: [] for i in layers}
    sampled = 0
    for ids, docs in _batches(blocks, batch_size):
        real = (docs >= 0).flatten()
        with neuron_activations(model, layers) as found:
            run_up_to(model, ids, max(layers))
        for i in layers:
            sample[i].append(found[i][real.to(found[i].device)][: CETT_TOKENS - sampled].float())
        sampled += int(real.sum())
        if sampled >= CETT_TOKENS:
            break
    return {i: torch.cat(parts) for i, parts in sample.items()}


def _pooled(y: Tensor, threshold: float) -> Tensor:
    """The number of elements above the threshold and of all elements, Σ y⁺ and Σ (y⁺)²."""
    positive = y.float().clamp(min=0)
    above = (y > threshold).sum().double()
    return torch.stack(
        [above, above.new_tensor(y.numel()), positive.sum().double(), positive.square().sum().double()]
    ).cpu()


def _sufficient(
    model: PreTrainedModel,
    blocks: Blocks,
    weights: Mapping[int, Tensor],
    tolerance: float,
    batch_size: int,
    progress: Callable[[str], object],
    journal: Journal,
    about: Mapping[str, Any],
) -> Sufficient:
    dense, _ = journal.part("perplexity", lambda: _perplexity(model, blocks, {}, weights, batch_size), **about)
    acts = cache(lambda: _sample(model, blocks, list(weights), batch_size))
    tried: dict[float, tuple[float, dict[int, float]]] = {}

    def perplexity(cett: float) -> float:
        progress(f"perplexity at CETT {cett:.3f}")

        def skipped() -> tuple[float, dict[int, float]]:
            thresholds = {i: cett_threshold(a, weights[i], cett, steps=10) for i, a in acts().items()}
            return _perplexity(model, blocks, thresholds, weights, batch_size)

        tried[cett] = journal.part(f"perplexity at CETT {cett:.4f}", skipped, **about)
        return tried[cett][0]

    best = largest_within(perplexity, dense * (1 + tolerance), 0.0, 1.0, STEPS)
    if best not in tried:
        perplexity(best)
    reached, kept = tried[best]
    return Sufficient(kept, best, reached, dense)


def _perplexity(
    model: PreTrainedModel,
    blocks: Blocks,
    thresholds: Mapping[int, float],
    weights: Mapping[int, Tensor],
    batch_size: int,
) -> tuple[float, dict[int, float]]:
    """Perplexity, and each layer's share of neurons kept, when contributions below a threshold are skipped."""
    kept = {i: torch.zeros(2, dtype=torch.float64) for i in thresholds}
    loss = DocumentLoss()
    for ids, docs in _batches(blocks, batch_size):
        with _skipping(model, thresholds, weights, kept, (docs >= 0).flatten()):
            nll = token_nll(model, ids.to(model.device)).cpu()
        counted = (docs[:, 1:] >= 0).flatten()
        loss.update(nll.flatten()[counted], docs[:, 1:].flatten()[counted])
    return math.exp(loss.compute().value), {i: float(on / of) for i, (on, of) in kept.items()}


@contextmanager
def _skipping(
    model: PreTrainedModel,
    thresholds: Mapping[int, float],
    weights: Mapping[int, Tensor],
    kept: Mapping[int, Tensor],
    real: Tensor,
) -> Iterator[None]:
    def skip(i: int) -> Callable[[Tensor, Tensor], Tensor]:
        norm = weights[i].norm(dim=1)

        def by(_: Tensor, a: Tensor) -> Tensor:
            stays = a.float().abs() * norm >= thresholds[i]
            chosen = stays[real.to(stays.device)]
            kept[i] += torch.tensor([float(chosen.sum()), float(chosen.numel())], dtype=torch.float64)
            return torch.where(stays, a, 0.0)

        return by

    with ExitStack() as stack:
        for i in thresholds:
            stack.enter_context(replaced(model, Site("neurons", i), Site("neurons", i), skip(i)))
        yield


def _batches(blocks: Blocks, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token ids and documents [b, t], without columns that hold only padding."""
    assert blocks.doc_ids is not None
    for start in range(0, len(blocks.input_ids), batch_size):
        docs = blocks.doc_ids[start : start + batch_size]
        width = int(np.flatnonzero((docs >= 0).any(0)).max()) + 1
        ids = blocks.input_ids[start : start + batch_size, :width].astype(np.int64)
        yield torch.from_numpy(ids), torch.from_numpy(docs[:, :width].astype(np.int64))
