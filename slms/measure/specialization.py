"""Measures how specialised the units of a model are: one pass over text, then AS, SI, coherence and Q with their nulls.

Shapes: b blocks, t position, n tokens (b·t), u units, f neurons, r sampled tokens.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from slms.data.text import Blocks
from slms.measure.classes import TextClasses, preferred_classes
from slms.measure.evidence import Activities
from slms.measure.journal import Journal
from slms.measure.metrics import METRICS, rows_of
from slms.measure.passes import batches
from slms.measure.rows import Row
from slms.measure.units import UnitReader, logits_seconds
from slms.metrics.activations import CoActivation, SparsitySums
from slms.metrics.states import Sums
from slms.metrics.units import UnitCounts
from slms.progress import progress

TOP_TOKENS = 10


class UnitTable(NamedTuple):
    """The units of one place: a layer's neurons or pathways, or a coder's latents."""

    place: str
    columns: dict[str, Tensor]
    """[u] each: `active` (share of sampled tokens), `coherence` and `coherence_z`, `community` (−1 for none), and for
    each family `si_<family>`, `z_<family>` and `class_<family>` (−1 if never on), or `…_given_token`"""
    top_tokens: Tensor
    """int64 [u, k], the sampled tokens at which a unit is strongest, the strongest first; padded with −1"""


class Measured(NamedTuple):
    """The numbers of all places, and what they rest on."""

    rows: list[Row]
    units: list[UnitTable]
    label_names: dict[str, tuple[str, ...]]
    coverage: dict[str, float]
    """for each family, the share of tokens with a known class; for a conditional one, of n·H(C | token)"""
    n_tokens: int
    seconds: dict[str, float]
    """CPU time of the thresholds' sample, the model's forward passes, counting, the omitted logits, and each metric"""


class _Tables(nn.Module):
    """Gathers the counts and samples of one place while the text streams by."""

    def __init__(self, reader: UnitReader, name: str, classes: TextClasses, n_sampled: int, threshold: float):
        super().__init__()
        self.counts = UnitCounts(classes.layout, reader.places[name])
        self.sparsity = SparsitySums(reader.out_norm[name], threshold)
        self.strength = CoActivation(reader.places[name], n_sampled)
        # The strength of neurons and latents is |a|; only pathways have activations of other units, their neurons.
        self.activations = CoActivation(reader.n_activations[name], n_sampled) if name in reader.partition else None
        self.to(reader.model.device)
        for metric in self.metrics():
            metric.distributed_available_fn = lambda: False  # one process measures by itself

    def metrics(self) -> list[Metric]:
        """The sums over the text."""
        return [child for child in self.children() if isinstance(child, Metric)]


class Effort(Sums):
    """Counts how far a pass has come, padding included, and its CPU time."""

    tokens: Tensor
    forward_seconds: Tensor
    counting_seconds: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")
        for name in ("forward_seconds", "counting_seconds"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, tokens: int, forward_seconds: float, counting_seconds: float) -> None:
        """Add a batch."""
        self.tokens += tokens
        self.forward_seconds += forward_seconds
        self.counting_seconds += counting_seconds

    def compute(self) -> dict[str, float]:
        """Seconds of the model's forward passes, and of counting."""
        return {"forward": float(self.forward_seconds), "counting": float(self.counting_seconds)}


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
    journal: Journal | None = None,
    name: str = "",
) -> Measured:
    """Measure every place of a reader on labelled blocks; memory does not grow with the number of tokens.

    Args:
        families: label families of the blocks; None means all.
        given_token: families also measured given the token, over the 32 tokens whose class is most uncertain.
        n_nulls: how many token-shuffled copies of the graph form the null of Q.
        n_sampled: tokens kept for the graph, for coherence and for how units go together.
        graph: False leaves Q out.
        threshold: the legacy share of active neurons counts the activations above it.
        journal: journal of this reader's model and units, and of these blocks. It keeps the pass over the text and each
            place's scores, graph and coherence under `name`, which progress shows too.
    """
    journal = journal or Journal()
    about = {"batch_size": batch_size, "families": families, "given_token": list(given_token), "n_sampled": n_sampled}
    classes = TextClasses(blocks, families, given_token)
    tables = {place: _Tables(reader, place, classes, n_sampled, threshold) for place in reader.places}
    effort = Effort()
    sums = [effort, *(metric for table in tables.values() for metric in table.metrics())]
    settings = about | {"threshold": threshold, "places": list(tables)}
    read = batches(blocks, batch_size)
    for batch in journal.through(f"{name} reading", read, sums, f"{name}: reading", **settings):
        start, forward = time.process_time(), reader.forward_seconds
        _add(reader, tables, classes, _trimmed(batch), int(effort.tokens))
        forward = reader.forward_seconds - forward
        effort.update(batch["input_ids"].numel(), forward, time.process_time() - start - forward)
    seconds = {"thresholds": getattr(reader, "sampling_seconds", 0.0)} | effort.compute()
    seconds["logits"] = logits_seconds(reader.model, int(effort.tokens))
    about["n_nulls"] = n_nulls if graph else 0
    rows, units, n_tokens = [], [], 0
    for place in progress(tables, f"{name}: scoring"):

        def part(what: str, make: Callable[[], Any], place: str = place) -> Any:
            return journal.part(f"{name} {place} {what}", make, **about)

        found = _evidence(reader, place, tables[place], n_nulls if graph else 0, part)
        for metric in (key for key, one in METRICS.items() if one.of is not None):
            start = time.process_time()
            rows += rows_of(found, [metric])
            seconds[metric] = seconds.get(metric, 0.0) + time.process_time() - start
        units.append(_units(found))
        n_tokens = found.n
    return Measured(rows, units, classes.label_names, classes.coverage, n_tokens, seconds)


def _trimmed(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch without the columns on the right that are padding in every row."""
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


def _evidence(reader: UnitReader, name: str, table: _Tables, n_nulls: int, part: Callable[..., Any]) -> Activities:
    strength, groups = table.strength.compute()
    neurons = None
    if table.activations is not None:
        neurons = (*table.activations.compute(), reader.partition[name])
    embedding = reader.model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    return Activities(
        name,
        table.counts,
        sparsity=table.sparsity.compute(),
        strength=strength,
        on=strength > (reader.thresholds[name] if hasattr(reader, "thresholds") else 0),
        tokens=table.strength.tokens(),
        groups=groups,
        embedding=embedding.detach(),
        n_nulls=n_nulls,
        neurons=neurons,
        part=part,
    )


def _units(found: Activities) -> UnitTable:
    community = torch.full([found.on.shape[1]], -1)
    if found.graph is not None and found.neurons is None:
        community[found.in_graph.cpu()] = found.graph.communities
    columns = {
        "active": found.on.double().mean(0),
        "coherence": found.coherence.units,
        "coherence_z": found.coherence.units_z,
        "community": community,
    }
    for given_token in (False, True):
        for family, score in found.si(given_token).items():
            name = f"{family}_given_token" if given_token else family
            columns |= {f"si_{name}": score.units, f"z_{name}": score.units_z}
            if not given_token:
                counts, totals = (part.sum(0) for part in found.counts.tables(family))
                columns[f"class_{name}"] = preferred_classes(counts, totals)
    value, rows = found.active.topk(min(TOP_TOKENS, len(found.active)), dim=0)
    top = torch.where(value > 0, found.tokens[rows], -1).T
    return UnitTable(found.place, {name: column.cpu() for name, column in columns.items()}, top.cpu())
