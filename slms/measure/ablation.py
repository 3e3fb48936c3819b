"""Causal specialization: the loss increase of every class of tokens when a set of neurons is ablated in one MLP.

Shapes: b blocks, t position, n predicted tokens (b·(t − 1)), f neurons, u units (sets of neurons), g document groups,
c classes, r permutations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.journal import Journal
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

SMALLEST = 4  # neurons; a smaller community is not ablated
GRAPH_TOKENS = 4096

Told = Callable[[str, float], object]
"""A function that is called with what was ablated, in words, and the loss increase in nats per token."""


class ClassSums(NamedTuple):
    """How much the loss of a label family's classes increases when each unit of one place is ablated."""

    sums: Tensor
    """float64 [1 + r, g, u, c], nats, summed over tokens; row 0 has the true labels, the others permuted ones"""
    totals: Tensor
    """float64 [1 + r, g, c], number of tokens"""


class TokenLosses(NamedTuple):
    """The losses of the whole model on the blocks, and the labels of the tokens that it predicts."""

    nll: Tensor
    """fp32 [n], nats"""
    group: Tensor
    """int64 [n], document group"""
    labels: dict[str, Tensor]
    """family → int64 [1 + r, n], class of the predicted token, −1 if unknown; row 0 is true, the others are permuted
    among the tokens whose class is known"""


def whole_losses(
    model: PreTrainedModel,
    blocks: Blocks,
    families: Sequence[str],
    n_permutations: int,
    batch_size: int,
    seed: int = 0,
    journal: Journal | None = None,
) -> TokenLosses:
    """The losses of the whole model, kept as a part of the journal, and the predicted classes with permuted copies."""

    def predicted(column: np.ndarray) -> Tensor:
        return torch.from_numpy(column[:, 1:].astype(np.int64)).flatten()

    nll = (journal or Journal()).part("whole", lambda: _losses(model, blocks, batch_size), batch_size=batch_size)
    generator = torch.Generator().manual_seed(seed)
    labels = {family: _permuted(predicted(blocks.labels[family]), n_permutations, generator) for family in families}
    assert blocks.doc_ids is not None
    return TokenLosses(nll, predicted(blocks.doc_ids) % N_GROUPS, labels)


@torch.inference_mode()
def _losses(model: PreTrainedModel, blocks: Blocks, batch_size: int) -> Tensor:
    """Nats of each predicted token, fp32 [n]."""
    read = batches(blocks, batch_size)
    return torch.cat([token_nll(model, batch["input_ids"].to(model.device)).flatten().cpu() for batch in read])


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
    """The mean [f] of each neuron over the blocks, at the input of the down-projection, in dense order."""
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
    kind: str = "unit",
    told: Told = lambda name, nats: None,
    journal: Journal | None = None,
) -> dict[str, ClassSums]:
    """Ablate each unit of one place; returns family → loss increases.

    Args:
        unit_of: int64 [f], the unit of each neuron in dense order; −1 for none.
        whole: from `whole_losses` on the same blocks.
        n_classes: number of classes of each family.
        by: what replaces the unit's activations: their means over the blocks, or zero. The mean keeps the constant
            part of what the unit adds, so that only what it says about a token is lost.
        kind: what a unit is called when `told` is called, which happens after each unit.
        journal: journal of this model and these blocks; it keeps the means and the losses without each unit.
    """
    journal = journal or Journal()
    about = {"by": by, "batch_size": batch_size}

    @cache
    def mean() -> Tensor:
        if by == "zero":
            return torch.zeros(len(unit_of), device=model.device)
        found = journal.part(f"{place} mean", lambda: mean_activations(model, blocks, place, batch_size), **about)
        return found.to(model.device)

    def without(unit: Tensor) -> Tensor:
        """Nats of each predicted token, fp32 [n], without a unit, bool [f]."""
        site, taken, other = neurons_at(place), unit.to(model.device), mean()
        with replaced(model, site, site, lambda _, a: torch.where(taken, other.to(a), a)):
            return _losses(model, blocks, batch_size)

    rises = []
    for unit in range(count_units(unit_of)):
        taken = unit_of == unit
        nll = journal.part(f"{place} without", partial(without, taken), neurons=taken.nonzero().tolist(), **about)
        rises.append((nll - whole.nll).double())
        told(f"{place} {kind} {unit}", float(rises[-1].mean()))
    rise = torch.stack(rises) if rises else torch.zeros(0, len(whole.nll), dtype=torch.float64)
    return {family: _class_sums(rise, whole, family, c) for family, c in n_classes.items()}


def _class_sums(rises: Tensor, whole: TokenLosses, family: str, c: int) -> ClassSums:
    """Sum loss increases [u, n] by class."""
    known = whole.labels[family][0] >= 0
    column = whole.group[known] * c + whole.labels[family][:, known]
    sums = torch.stack([rises.new_zeros(len(rises), N_GROUPS * c).index_add_(1, at, rises[:, known]) for at in column])
    totals = torch.stack([torch.bincount(at, minlength=N_GROUPS * c).double() for at in column])
    return ClassSums(rearrange(sums, "r u (g c) -> r g u c", c=c), rearrange(totals, "r (g c) -> r g c", c=c))


class Ablation(NamedTuple):
    """The effects of ablating the units of one place."""

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
    """by family, for random sets of neurons of the same sizes; empty if not asked for"""


def units_at(model: PreTrainedModel, blocks: Blocks, place: str, batch_size: int, seed: int = 0) -> tuple[str, Tensor]:
    """The kind of the units, and the unit of each neuron [f]: a routed MLP's pathways, or a dense one's communities.

    Communities come from Leiden on the co-activation graph that Q measures, over the first 4,096 tokens of the blocks.
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
    """The number of units to which the neurons [f] belong."""
    return int(unit_of.max()) + 1


def measure_ablation(
    model: PreTrainedModel,
    blocks: Blocks,
    place: str,
    units: tuple[str, Tensor],
    whole: TokenLosses,
    families: Sequence[str],
    by: Literal["mean", "zero"] = "mean",
    control: torch.Generator | None = None,
    batch_size: int = 16,
    told: Told = lambda name, nats: None,
    journal: Journal | None = None,
) -> Ablation:
    """Ablate every unit of a place; `units` is the kind and the unit of each neuron, from `units_at`.

    control: a generator that draws random sets of the same sizes, which are ablated too.
    """
    (kind, unit_of), n_classes = units, {family: len(blocks.label_names[family]) for family in families}

    def scored(kind: str, unit_of: Tensor) -> tuple[dict[str, ClassSums], dict[str, CausalScore]]:
        found = ablate(model, blocks, place, unit_of, whole, n_classes, by, batch_size, kind, told, journal)
        return found, {
            family: causal_specialization(sums[0], totals[0], sums[1:], totals[1:])
            for family, (sums, totals) in found.items()
        }

    classes, scores = scored(kind, unit_of)
    random = {}
    if control is not None:
        random = scored("random set", unit_of[torch.randperm(len(unit_of), generator=control)])[1]
    return Ablation(place, kind, unit_of, classes, scores, random)


def ablation_rows(found: Sequence[Ablation], seed: int | None = None) -> list[Row]:
    """Rows of the SI-causal of every place and family; the control is that of random sets of the same sizes."""
    rows = []
    for a in found:
        for family, score in a.scores.items():
            row = row_of(a.place, "si_causal", family, score, n=int(a.classes[family].totals[0].sum()), seed=seed)
            random = a.control.get(family)
            rows.append(row if random is None else replace(row, control=finite(random.value)))
    return rows


class Cell(NamedTuple):
    """The effect of one unit on one class."""

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
    """The cells of every unit and every class that occurs."""
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
