"""Causal specialization of the units of a place, beside that of random sets of neurons.

Shapes: f neurons, u units, s sets, c classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.ablation import ClassSums
from slms.measure.passes import batches
from slms.measure.random_sets import neurons_at
from slms.measure.rows import Row, finite, row_of
from slms.metrics.communities import leiden
from slms.metrics.functional import coactivation
from slms.metrics.functional.causal import CausalScore, beyond_random_sets, smallest_effect
from slms.models.routed import routed_modules
from slms.models.routed_heads import RoutedHeads
from slms.models.routed_mlp import RoutedMLP
from slms.models.sites import read_sites

SMALLEST = 4  # neurons; a smaller community is not ablated
GRAPH_TOKENS = 4096


class Ablation(NamedTuple):
    """The effects of ablating the units of one place."""

    place: str
    kind: str
    """`pathway`, `head` or `community`"""
    unit_of: Tensor
    """int64 [f], the unit of each neuron in dense order; −1 for none"""
    classes: dict[str, ClassSums]
    """by family"""
    scores: dict[str, CausalScore]
    """by family"""
    control: dict[str, CausalScore]
    """by family, for random sets; empty without any"""


def units_at(model: PreTrainedModel, blocks: Blocks, place: str, batch_size: int, seed: int = 0) -> tuple[str, Tensor]:
    """The kind of the units, and the unit of each neuron [f]: pathways, heads, or a dense MLP's communities.

    Communities come from Leiden on the co-activation graph that Q measures, over the first 4,096 tokens of the blocks.
    """
    module = routed_modules(model).get(place)
    if isinstance(module, RoutedMLP):
        return "pathway", module.pathway_of_neuron()
    if isinstance(module, RoutedHeads):
        return "head", torch.arange(module.shape.h).repeat_interleave(module.shape.e)
    parts, n, site = [], 0, neurons_at(place)
    for batch in batches(blocks, batch_size):
        parts.append(read_sites(model, batch["input_ids"].to(model.device), [site])[site.name])
        n += len(parts[-1])
        if n >= GRAPH_TOKENS:
            break
    found = leiden(coactivation(torch.cat(parts)[:GRAPH_TOKENS].float().cpu()), seed=seed)
    return "community", torch.where(torch.bincount(found)[found] >= SMALLEST, found, -1)


def groups_at(model: PreTrainedModel, place: str, unit_of: Tensor) -> Tensor:
    """The group, int64 [f], of each neuron's unit: the heads of a group compete with each other alone."""
    module = routed_modules(model).get(place)
    return torch.zeros_like(unit_of) if module is None else unit_of // (module.config.n_pathways // module.n_groups)


def count_units(unit_of: Tensor) -> int:
    """The number of units to which the neurons [f] belong."""
    return int(unit_of.max()) + 1


def unit_sets(unit_of: Tensor) -> Tensor:
    """The neurons of each unit, bool [u, f], from the unit of each neuron [f]."""
    return unit_of == torch.arange(count_units(unit_of))[:, None]


def detectable_rows(place: str, n_units: int, control: Mapping[str, CausalScore], seed: int | None) -> list[Row]:
    """The smallest SI-causal minus that of random sets that will be seen, by family, known from random sets alone."""
    return [
        row_of(place, "si_causal_detectable", family, smallest_effect(score, n_units), n=score.n_documents, seed=seed)
        for family, score in control.items()
    ]


def ablation_rows(found: Sequence[Ablation], seed: int | None = None) -> list[Row]:
    """Rows of the SI-causal of every place and family; the control is that of random sets."""
    rows = []
    for a in found:
        for family, score in a.scores.items():
            row = row_of(a.place, "si_causal", family, score, n=int(a.classes[family].totals.sum()), seed=seed)
            if family in a.control:
                apart = beyond_random_sets(score, a.control[family])
                row = replace(
                    row,
                    control=finite(apart.control),
                    control_sd=finite(apart.control_sd),
                    difference=finite(apart.difference),
                    difference_low=finite(apart.difference_low),
                    difference_high=finite(apart.difference_high),
                )
            rows.append(row)
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
        for family, sums in a.classes.items():
            tokens, rise = sums.totals.sum(0), sums.sums.sum(0) / sums.totals.sum(0)
            for unit in range(count_units(a.unit_of)):
                best, size = int(a.scores[family].best[unit]), int((a.unit_of == unit).sum())
                cells += [
                    Cell(a.place, unit, size, family, label, float(rise[unit, c]), int(tokens[c]), c == best)
                    for c, label in enumerate(label_names[family])
                    if tokens[c] > 0
                ]
    return cells
