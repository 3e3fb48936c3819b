"""How specialised the units of a model are: one pass over text, then AS, SI, coherence and Q, each with its nulls.

Shapes: b blocks, t position, n tokens (b·t), u units, f neurons, r sampled tokens.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from slms.data.text import Blocks
from slms.measure.classes import TextClasses, preferred_classes
from slms.measure.passes import batches
from slms.measure.units import UnitReader, logits_seconds
from slms.metrics.activations import CoActivation, LayerSparsity, SparsitySums
from slms.metrics.communities import Modularity, modularity
from slms.metrics.functional import (
    PartitionModularity,
    Score,
    coactivation,
    partition_modularity,
    semantic_coherence,
)
from slms.metrics.units import UnitCounts

MOST_IN_GRAPH = 4096  # units of the co-activation graph, the most used first

Progress = Callable[[Iterable, str, int], Iterable]


class Place(NamedTuple):
    """What was measured of one place: a layer's neurons or pathways, or a coder's latents."""

    name: str
    n_units: int
    n_tokens: int
    load: Tensor
    """[u], share of tokens at which a unit is on"""
    sparsity: LayerSparsity
    si: dict[str, Score]
    """by family; families conditional on the token end in ` | token`"""
    best_class: dict[str, Tensor]
    """int64 [u], of each unconditional family the class that most sets a unit's tokens apart; −1 for a unit never on"""
    coherence: Score
    graph: Modularity | None
    in_graph: Tensor
    """int64, the units (of pathways, the neurons) that the graph holds"""
    partition: PartitionModularity | None
    """of the given communities, where the reader has them"""
    top_tokens: Tensor
    """int64 [u, k], tokens at which a unit is strongest in the sample, the strongest first; −1: none"""


class Measured(NamedTuple):
    """All places, and what the numbers rest on."""

    places: list[Place]
    label_names: dict[str, tuple[str, ...]]
    coverage: dict[str, float]
    """of each family, the share of tokens with a known class; of a conditional one, the share of n·H(C | token)"""
    seconds: dict[str, float]
    """CPU time of the model's forward passes, of the logits that they left out, of counting, of each kind of number"""


class _Tables(nn.Module):
    """What one place gathers while the text streams by."""

    def __init__(self, reader: UnitReader, name: str, classes: TextClasses, n_sampled: int, threshold: float):
        super().__init__()
        self.counts = UnitCounts(classes.layout, reader.places[name])
        self.sparsity = SparsitySums(reader.out_norm[name], threshold)
        self.strength = CoActivation(reader.places[name], n_sampled)
        # Of neurons and latents the strength is |a|; only pathways have activations of other units, their neurons.
        self.activations = CoActivation(reader.n_activations[name], n_sampled) if name in reader.partition else None
        self.to(reader.model.device)
        for metric in (child for child in self.children() if isinstance(child, Metric)):
            metric.distributed_available_fn = lambda: False  # one process measures by itself


def measure_units(
    reader: UnitReader,
    blocks: Blocks,
    batch_size: int = 16,
    families: Sequence[str] | None = None,
    given_token: Sequence[str] = (),
    n_nulls: int = 10,
    n_sampled: int = 2048,
    graph: bool = True,
    threshold: float = 0.0,
    progress: Progress = lambda items, what, n: items,
) -> Measured:
    """Measure every place of a reader on labelled blocks; memory does not grow with the number of tokens.

    Args:
        families: label families of the blocks; None takes all.
        given_token: families also measured conditional on the token, over the 32 tokens with most to tell.
        n_nulls: token-shuffled copies of the graph behind the null of Q.
        n_sampled: tokens kept for the graph, for coherence and for how units go together.
        graph: False leaves Q out.
        threshold: above which the legacy share of active neurons counts.
        progress: wraps an iteration, given what it does and how many steps it has.
    """
    classes = TextClasses(blocks, families, given_token)
    tables = {name: _Tables(reader, name, classes, n_sampled, threshold) for name in reader.places}
    start, forward = time.process_time(), reader.forward_seconds
    n_batches = -(-len(blocks.input_ids) // batch_size)
    done = 0
    for batch in progress(batches(blocks, batch_size), "reading", n_batches):
        _add(reader, tables, classes, _trimmed(batch), done)
        done += batch["input_ids"].numel()
    seconds = {"forward": reader.forward_seconds - forward}
    seconds["counting"] = time.process_time() - start - seconds["forward"]
    seconds["logits"] = logits_seconds(reader.model, done)
    places = []
    for name in progress(list(tables), "scoring", len(tables)):
        places.append(_scored(reader, name, tables[name], blocks, n_nulls, graph, seconds))
    return Measured(places, classes.label_names, classes.coverage, seconds)


def _trimmed(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the columns on the right that are padding in every row."""
    width = int((batch["doc_ids"] >= 0).any(0).nonzero().max()) + 1
    return {name: column[:, :width] for name, column in batch.items() if column.dim() == 2}


@torch.no_grad()
def _add(reader: UnitReader, tables: Mapping[str, _Tables], classes: TextClasses, batch: dict, done: int) -> None:
    device = reader.model.device
    batch = {name: column.to(device) for name, column in batch.items()}
    ids, docs = batch["input_ids"].flatten(), batch["doc_ids"].flatten()
    real = docs >= 0
    cells = classes.cells(batch, real)
    position = torch.arange(done, done + len(ids), device=device)
    for name, found in reader.read(batch["input_ids"]).items():
        kept = real if found.kept is None else real & found.kept
        table, every = tables[name], bool(kept.all())
        table.counts.update(found.on, cells if found.kept is None else classes.cells(batch, kept))

        def of(x: Tensor, kept: Tensor = kept, every: bool = every) -> Tensor:
            return x if every else x[kept]

        table.sparsity.update(of(found.executed), of(docs))
        table.strength.update(of(found.strength), of(docs), of(position), of(ids))
        if table.activations is not None:
            table.activations.update(of(found.activations).abs(), of(docs), of(position), of(ids))


def _scored(
    reader: UnitReader, name: str, table: _Tables, blocks: Blocks, n_nulls: int, graph: bool, seconds: dict[str, float]
) -> Place:
    """Everything about one place, from its tables."""
    start = time.process_time()

    def clock(what: str) -> None:
        nonlocal start
        seconds[what] = seconds.get(what, 0.0) + time.process_time() - start
        start = time.process_time()

    sparsity = table.sparsity.compute()
    clock("AS")
    strength, groups = table.strength.compute()
    on = strength > (reader.thresholds[name] if hasattr(reader, "thresholds") else 0)
    few = on if on.shape[1] <= MOST_IN_GRAPH else None
    families = table.counts.layout.families
    plain = [family for family in families if families[family].strata is None]
    si = {family: table.counts.score(family, few) for family in plain}
    best = {family: preferred_classes(*(part.sum(0) for part in table.counts.tables(family))) for family in plain}
    clock("SI")
    si |= {family: table.counts.score(family, few) for family in families if family not in si}
    clock("SI given the token")
    embedding = reader.model.get_input_embeddings().weight.detach()
    tokens = table.strength.tokens()
    coherence = semantic_coherence(torch.where(on, strength, 0.0), tokens, embedding, groups)
    top = _top_tokens(torch.where(on, strength, 0.0), tokens)
    clock("coherence")
    found, partition, members = None, None, torch.arange(0)
    if graph:
        activations = strength
        if table.activations is not None:
            activations, groups = table.activations.compute()
            partition = partition_modularity(coactivation(activations), reader.partition[name])
        members = _most_used(activations)
        found = modularity(activations[:, members], groups, n_nulls) if len(members) > 2 else None
        clock("Q")
    return Place(
        name=name, n_units=reader.places[name], n_tokens=sparsity.n, load=on.double().mean(0).cpu(),
        sparsity=sparsity, si=si, best_class=best, coherence=coherence, graph=found, in_graph=members.cpu(),
        partition=partition, top_tokens=top.cpu(),
    )  # fmt: skip


def _most_used(activations: Tensor, fewest: int = 20) -> Tensor:
    """Units that are active at some tokens, at most `MOST_IN_GRAPH`, the most used first taken; ascending."""
    used = (activations > 0).sum(0)
    order = used.argsort(descending=True, stable=True)[:MOST_IN_GRAPH]
    return order[used[order] >= min(fewest, len(activations))].sort().values


def _top_tokens(strength: Tensor, tokens: Tensor, k: int = 10) -> Tensor:
    value, rows = strength.topk(min(k, len(strength)), dim=0)
    return torch.where(value > 0, tokens[rows], -1).T
