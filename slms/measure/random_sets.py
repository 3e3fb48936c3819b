"""Random sets of neurons that match a unit in size and in total contribution, the controls of an ablation.

Shapes: f neurons, u units, s sets.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.passes import batches
from slms.models.anatomy import find_mlps
from slms.models.place import parse_place, place_name
from slms.models.routed import routed_modules
from slms.models.routed_heads import RoutedHeads
from slms.models.sites import Site, read_sites
from slms.models.weights import read_mlp

TOLERANCE = 0.02
"""Relative error of a set's total contribution at which the search for neurons to swap ends."""


class Neurons(NamedTuple):
    """What the neurons of one place do, in dense order, over some blocks."""

    mean: Tensor
    """[f], the mean activation at the input of the down-projection; 0 counts where a neuron is not executed"""
    contribution: Tensor
    """[f], E|a|·‖w_out‖, how much a neuron adds to the output"""


class Part(NamedTuple):
    """What can be ablated in one part of a layer."""

    site: str
    """the kind of site (`slms.models.sites`) of its neurons: for heads, the numbers that they pass on"""
    rows: Callable[[PreTrainedModel, int], Tensor]
    """maps a model and a layer to what each neuron writes, [f, d]"""


PARTS = {
    "mlp": Part("neurons", lambda model, layer: read_mlp(find_mlps(model)[layer]).W_out),
    "attn": Part("heads", lambda model, layer: routed_modules(model, RoutedHeads)[place_name(layer, "attn")].W_O()),
}
"""By part of a layer, as in the names of places."""


class RandomSets(NamedTuple):
    """Random sets of neurons, each a match of one unit."""

    sets: Tensor
    """bool [s, f]"""
    of_unit: Tensor
    """int64 [s], the unit that the set matches in size and contribution"""
    error: float
    """the largest relative difference of a set's total contribution to its unit's"""
    own: float
    """share of a set's neurons that are its unit's own, mean over sets"""


def neurons_at(place: str) -> Site:
    """The neurons of the MLP at a place, or what the query heads of its routed attention pass on."""
    at = parse_place(place)
    return Site(PARTS[at.part].site, at.layer)


@torch.inference_mode()
def read_neurons(
    model: PreTrainedModel, blocks: Blocks, places: Sequence[str], batch_size: int
) -> Mapping[str, Neurons]:
    """Mean activation and contribution of every neuron of these places, in one pass over the blocks."""
    sites = [neurons_at(place) for place in places]
    sums: dict[str, list[Tensor]] = {}
    n = 0
    for batch in batches(blocks, batch_size):
        found = read_sites(model, batch["input_ids"].to(model.device), sites)
        for place, site in zip(places, sites, strict=True):
            a = found[site.name].double()
            of_batch = [a.sum(0).cpu(), a.abs().sum(0).cpu()]
            sums[place] = [x + y for x, y in zip(sums[place], of_batch, strict=True)] if n else of_batch
        n += batch["input_ids"].numel()
    rows = {place: PARTS[at.part].rows(model, at.layer) for place, at in ((p, parse_place(p)) for p in places)}
    norms = {place: of.detach().double().cpu().norm(dim=1) for place, of in rows.items()}
    return {place: Neurons((total / n).float(), size / n * norms[place]) for place, (total, size) in sums.items()}


def random_sets(
    contribution: Tensor, unit_of: Tensor, n: int, generator: torch.Generator, group_of: Tensor | None = None
) -> RandomSets:
    """Draw n independent random sets, which match the units in turn, in an order that is drawn.

    A set starts as a uniform draw of as many neurons as its unit has, its own included. While its total contribution is
    off by more than `TOLERANCE`, one of its neurons is swapped with one outside: a random pair among those that end
    the search, or the pair that comes nearest.

    Args:
        contribution: [f]; unit_of: int64 [f], the unit of each neuron, −1 for none.
        group_of: int64 [f]; a set is drawn among the neurons of its unit's group. None is one group.
    """
    n_units = int(unit_of.max()) + 1
    if not n or not n_units:
        return RandomSets(torch.zeros(0, len(unit_of), dtype=torch.bool), torch.zeros(0, dtype=torch.int64), 0.0, 0.0)
    order = torch.cat([torch.randperm(n_units, generator=generator) for _ in range(-(-n // n_units))])[:n]
    group_of = torch.zeros_like(unit_of) if group_of is None else group_of
    units = unit_of == order[:, None]
    sets = torch.zeros_like(units)
    for drawn, unit in zip(sets, units, strict=True):
        group = torch.isin(group_of, group_of[unit])
        drawn[group] = _matched(contribution[group].double(), unit[group], generator)
    total, wanted = ((x * contribution).sum(1) for x in (sets, units))
    error = float(((total - wanted).abs() / wanted.clamp(min=1e-300)).max())
    own = (sets & units).sum(1) / units.sum(1)
    return RandomSets(sets, order, error, float(own.double().mean()))


def _matched(contribution: Tensor, unit: Tensor, generator: torch.Generator) -> Tensor:
    """A random set of neurons, bool [f], of the size and total contribution of a unit, bool [f]."""
    wanted, size = float(contribution[unit].sum()), int(unit.sum())
    order = torch.randperm(len(unit), generator=generator)
    inside, outside = order[:size].clone(), order[size:].clone()
    for _ in range(size):
        missing = wanted - float(contribution[inside].sum())
        if abs(missing) <= TOLERANCE * wanted or not len(outside):
            break
        left = (missing - (contribution[outside] - contribution[inside][:, None])).abs().flatten()
        ends = (left <= TOLERANCE * wanted).nonzero()[:, 0]
        at = int(ends[torch.randint(len(ends), (), generator=generator)]) if len(ends) else int(left.argmin())
        if not len(ends) and float(left[at]) >= abs(missing):
            break
        i, j = divmod(at, len(outside))
        inside[i], outside[j] = outside[j].clone(), inside[i].clone()
    found = torch.zeros_like(unit)
    found[inside] = True
    return found
