"""Causal specialization: the loss increase of every class of tokens when a set of neurons is taken out of one MLP.

Shapes: b blocks, t position, n predicted tokens (b·(t − 1)), f neurons, u units (sets of neurons), g document groups,
c classes, r permutations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.passes import batches, token_nll
from slms.measure.rows import Row, finite, row_of
from slms.metrics.communities import leiden
from slms.metrics.functional import coactivation
from slms.metrics.functional.causal import CausalScore, causal_specialization
from slms.metrics.units import N_GROUPS
from slms.models.anatomy import find_mlps
from slms.models.place import layer_of
from slms.models.routed_mlp import RoutedMLP
from slms.models.sites import Site, read_sites, replaced

SMALLEST = 4  # neurons; a smaller community is left in place
GRAPH_TOKENS = 4096


class ClassSums(NamedTuple):
    """What ablating each unit of one place adds to the loss of a label family's classes."""

    sums: Tensor
    """float64 [1 + r, g, u, c], nats, summed over tokens; row 0 with the true labels, the others permuted"""
    totals: Tensor
    """float64 [1 + r, g, c], tokens"""


class TokenLosses(NamedTuple):
    """The whole model on the blocks, and the labels of the tokens it predicts."""

    nll: Tensor
    """fp32 [n], nats"""
    group: Tensor
    """int64 [n], document group"""
    labels: dict[str, Tensor]
    """family → int64 [1 + r, n], class of the predicted token, −1 unknown; row 0 true, the others permuted among the
    tokens whose class is known"""


def whole_losses(
    model: PreTrainedModel, blocks: Blocks, families: Sequence[str], n_permutations: int, batch_size: int, seed: int = 0
) -> TokenLosses:
    """Losses of the model as it is, and the classes of what it predicts, with permuted copies."""
    nll: list[Tensor] = []
    group: list[Tensor] = []
    labels: dict[str, list[Tensor]] = {family: [] for family in families}
    with torch.inference_mode():
        for batch in batches(blocks, batch_size):
            nll.append(token_nll(model, batch["input_ids"].to(model.device)).flatten().cpu())
            group.append(batch["doc_ids"][:, 1:].flatten() % N_GROUPS)
            for family in families:
                labels[family].append(batch[f"labels_{family}"][:, 1:].flatten())
    generator = torch.Generator().manual_seed(seed)
    stacked = {family: _permuted(torch.cat(parts), n_permutations, generator) for family, parts in labels.items()}
    return TokenLosses(torch.cat(nll), torch.cat(group), stacked)


def _permuted(classes: Tensor, n_permutations: int, generator: torch.Generator) -> Tensor:
    rows, known = [classes], (classes >= 0).nonzero()[:, 0]
    for _ in range(n_permutations):
        row = classes.clone()
        row[known] = classes[known[torch.randperm(len(known), generator=generator)]]
        rows.append(row)
    return torch.stack(rows)


def neurons_at(place: str) -> Site:
    """The neurons of the MLP at a place."""
    return Site("neurons", layer_of(place))


def mean_activations(model: PreTrainedModel, blocks: Blocks, place: str, batch_size: int) -> Tensor:
    """[f], mean over the blocks of each neuron at the input of the down-projection, in dense order."""
    total, n, site = torch.zeros(()), 0, neurons_at(place)
    for batch in batches(blocks, batch_size):
        a = read_sites(model, batch["input_ids"].to(model.device), [site])[site.name]
        total, n = total + a.double().sum(0).cpu(), n + len(a)
    return (total / n).float()


def ablate(
    model: PreTrainedModel,
    blocks: Blocks,
    place: str,
    unit_of: Tensor,
    whole: TokenLosses,
    n_classes: Mapping[str, int],
    by: Literal["mean", "zero"] = "mean",
    batch_size: int = 16,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, ClassSums]:
    """Family → loss increases when each unit of one place is ablated.

    Args:
        unit_of: int64 [f], the unit of each neuron in dense order; −1 for none.
        whole: from `whole_losses` on the same blocks.
        n_classes: classes of each family.
        by: what takes the place of the unit's activations: their means over the blocks, or zero. The mean leaves the
            constant part of what the unit adds, so that only what it says about a token is lost.
        progress: called after each unit.
    """
    n_units = count_units(unit_of)
    mean = mean_activations(model, blocks, place, batch_size) if by == "mean" else torch.zeros(len(unit_of))
    mean = mean.to(model.device)
    rows = len(next(iter(whole.labels.values())))
    found = {
        family: ClassSums(torch.zeros(rows, N_GROUPS, n_units, c).double(), torch.zeros(rows, N_GROUPS, c).double())
        for family, c in n_classes.items()
    }
    site = neurons_at(place)
    for unit in range(n_units):
        taken, nll = (unit_of == unit).to(model.device), []

        def without(_: Tensor, a: Tensor, taken: Tensor = taken) -> Tensor:
            return torch.where(taken, mean.to(a), a)

        with torch.inference_mode(), replaced(model, site, site, without):
            for batch in batches(blocks, batch_size):
                nll.append(token_nll(model, batch["input_ids"].to(model.device)).flatten().cpu())
        rise = (torch.cat(nll) - whole.nll).double()
        for family, (sums, totals) in found.items():
            c = n_classes[family]
            known = whole.labels[family][0] >= 0
            column = whole.group[known] * c + whole.labels[family][:, known]
            for row, index in enumerate(column):
                flat = torch.zeros(N_GROUPS * c, dtype=torch.float64)
                sums[row, :, unit] = rearrange(flat.index_add_(0, index, rise[known]), "(g c) -> g c", c=c)
                if unit == 0:
                    totals[row] = rearrange(torch.bincount(index, minlength=N_GROUPS * c), "(g c) -> g c", c=c)
        progress()
    return found


class Ablation(NamedTuple):
    """What ablating the units of one place does."""

    place: str
    kind: str
    """`pathway` or `community`"""
    unit_of: Tensor
    """int64 [f], the unit of each neuron in dense order; −1 for none"""
    classes: dict[str, ClassSums]
    """by family"""
    scores: dict[str, CausalScore]
    """by family"""
    control: dict[str, CausalScore]
    """the same of random sets of neurons of the same sizes; empty where not asked for"""


def units_at(model: PreTrainedModel, blocks: Blocks, place: str, batch_size: int, seed: int = 0) -> tuple[str, Tensor]:
    """The pathways of a routed MLP, or the co-activation communities of a dense one: kind and unit of each neuron [f].

    Communities are Leiden's on the graph that Q measures, from the first 4,096 tokens of the blocks.
    """
    mlp = find_mlps(model)[layer_of(place)]
    if isinstance(mlp, RoutedMLP):
        rows = torch.bucketize(torch.arange(len(mlp.permutation)), torch.tensor(mlp.offsets[1:]), right=True)
        return "pathway", rows[mlp.permutation.argsort().cpu()]
    parts, n, site = [], 0, neurons_at(place)
    for batch in batches(blocks, batch_size):
        parts.append(read_sites(model, batch["input_ids"].to(model.device), [site])[site.name])
        n += len(parts[-1])
        if n >= GRAPH_TOKENS:
            break
    found = leiden(coactivation(torch.cat(parts)[:GRAPH_TOKENS].float().cpu()), seed=seed)
    return "community", torch.where(torch.bincount(found)[found] >= SMALLEST, found, -1)


def count_units(unit_of: Tensor) -> int:
    """How many units the neurons [f] belong to."""
    return int(unit_of.max()) + 1


def measure_ablation(
    model: PreTrainedModel,
    blocks: Blocks,
    units: Mapping[str, tuple[str, Tensor]],
    families: Sequence[str],
    by: Literal["mean", "zero"] = "mean",
    control: bool = True,
    n_permutations: int = 20,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> tuple[TokenLosses, list[Ablation]]:
    """Ablate every unit of every place in `units` (place → kind and unit of each neuron, from `units_at`)."""
    whole = whole_losses(model, blocks, families, n_permutations, batch_size, seed)
    n_classes = {family: len(blocks.label_names[family]) for family in families}
    generator = torch.Generator().manual_seed(seed)
    found = []
    for place, (kind, unit_of) in units.items():
        classes = ablate(model, blocks, place, unit_of, whole, n_classes, by, batch_size, progress)
        random = {}
        if control:
            shuffled = unit_of[torch.randperm(len(unit_of), generator=generator)]
            random = _scores(ablate(model, blocks, place, shuffled, whole, n_classes, by, batch_size, progress))
        found.append(Ablation(place, kind, unit_of, classes, _scores(classes), random))
    return whole, found


def _scores(classes: Mapping[str, ClassSums]) -> dict[str, CausalScore]:
    return {
        family: causal_specialization(sums[0], totals[0], sums[1:], totals[1:])
        for family, (sums, totals) in classes.items()
    }


def ablation_rows(found: Sequence[Ablation], seed: int | None = None) -> list[Row]:
    """SI-causal of every place and family; the control is that of random sets of neurons of the same sizes."""
    rows = []
    for a in found:
        for family, score in a.scores.items():
            row = row_of(a.place, "si_causal", family, score, n=int(a.classes[family].totals[0].sum()), seed=seed)
            random = a.control.get(family)
            rows.append(row if random is None else replace(row, control=finite(random.value)))
    return rows


class Cell(NamedTuple):
    """One unit and class."""

    place: str
    unit: int
    neurons: int
    family: str
    label: str
    rise: float
    """mean loss increase in nats of the class's tokens without the unit"""
    tokens: int
    best: bool
    """whether no class's loss rises more"""


def cells_of(found: Sequence[Ablation], label_names: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Every unit against every class that occurs."""
    cells = []
    for a in found:
        for family, (sums, totals) in a.classes.items():
            tokens, rise = totals[0].sum(0), sums[0].sum(0) / totals[0].sum(0)
            for unit in range(count_units(a.unit_of)):
                best, size = int(a.scores[family].best[unit]), int((a.unit_of == unit).sum())
                cells += [
                    Cell(a.place, unit, size, family, label, float(rise[unit, c]), int(tokens[c]), c == best)
                    for c, label in enumerate(label_names[family])
                    if tokens[c] > 0
                ]
    return cells
