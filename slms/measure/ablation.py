"""Loss increase of every class of tokens when a set of neurons is taken out of one MLP.

Shapes: b blocks, t position, n predicted tokens (b·(t − 1)), f neurons, u units (sets of neurons), g document groups,
c classes, r permutations.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.passes import batches, token_nll
from slms.metrics.units import N_GROUPS
from slms.models.sites import Site, read_sites, replaced


class ClassSums(NamedTuple):
    """What ablating each unit of one layer adds to the loss of a label family's classes."""

    sums: Tensor
    """float64 [1 + r, g, u, c], nats, summed over tokens; row 0 with the true labels, the others permuted"""
    totals: Tensor
    """float64 [1 + r, g, c], tokens"""


class Losses(NamedTuple):
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
) -> Losses:
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
    return Losses(torch.cat(nll), torch.cat(group), stacked)


def _permuted(classes: Tensor, n_permutations: int, generator: torch.Generator) -> Tensor:
    rows, known = [classes], (classes >= 0).nonzero()[:, 0]
    for _ in range(n_permutations):
        row = classes.clone()
        row[known] = classes[known[torch.randperm(len(known), generator=generator)]]
        rows.append(row)
    return torch.stack(rows)


def mean_activations(model: PreTrainedModel, blocks: Blocks, layer: int, batch_size: int) -> Tensor:
    """[f], mean over the blocks of each neuron at the input of the down-projection, in dense order."""
    total, n = torch.zeros(()), 0
    for batch in batches(blocks, batch_size):
        a = read_sites(model, batch["input_ids"].to(model.device), [Site("neurons", layer)])[f"neurons.{layer}"]
        total, n = total + a.double().sum(0).cpu(), n + len(a)
    return (total / n).float()


def ablate(
    model: PreTrainedModel,
    blocks: Blocks,
    layer: int,
    unit_of: Tensor,
    whole: Losses,
    n_classes: Mapping[str, int],
    by: Literal["mean", "zero"] = "mean",
    batch_size: int = 16,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, ClassSums]:
    """Family → loss increases when each unit of one layer is ablated.

    Args:
        unit_of: int64 [f], the unit of each neuron in dense order; −1 for none.
        whole: from `whole_losses` on the same blocks.
        n_classes: classes of each family.
        by: what takes the place of the unit's activations: their means over the blocks, or zero. The mean leaves the
            constant part of what the unit adds, so that only what it says about a token is lost.
        progress: called after each unit.
    """
    n_units = int(unit_of.max()) + 1
    mean = mean_activations(model, blocks, layer, batch_size) if by == "mean" else torch.zeros(len(unit_of))
    mean = mean.to(model.device)
    rows = len(next(iter(whole.labels.values())))
    found = {
        family: ClassSums(torch.zeros(rows, N_GROUPS, n_units, c).double(), torch.zeros(rows, N_GROUPS, c).double())
        for family, c in n_classes.items()
    }
    site = Site("neurons", layer)
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
