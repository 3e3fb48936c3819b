"""How far the choices of two routed models of one base agree, neuron by neuron.

Shapes: n tokens, f neurons, p and q pathways of either model, g document groups.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.passes import batches
from slms.measure.pathways import device_of
from slms.measure.rows import Row, finite, row_of
from slms.metrics.functional.score import measured
from slms.metrics.units import N_GROUPS
from slms.models.routed import record_routes, routed_modules
from slms.models.routed_mlp import RoutedMLP


def shared_neurons(one: RoutedMLP, other: RoutedMLP) -> Tensor:
    """How many neurons pathway p of one MLP and q of the other have in common, float64 [p, q]."""
    tables = [F.one_hot(mlp.pathway_of_neuron(), mlp.config.n_pathways).double() for mlp in (one, other)]
    return tables[0].T @ tables[1]


def both_execute(joint: Tensor, loads: tuple[Tensor, Tensor], n: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """The share of tokens × neurons that both models execute, and that of independent choices of equal loads, [...].

    Args:
        joint: [..., p, q], tokens that choose p in one and q in the other; loads: [..., p] and [..., q], tokens that
            choose each; n: [...], all tokens.
        shared: [p, q], neurons in common.
    """
    f = shared.sum()
    both = torch.einsum("...pq,pq->...", joint, shared) / (n * f)
    alone = torch.einsum("...p,...q,pq->...", loads[0], loads[1], shared) / (n**2 * f)
    return both, alone


@torch.no_grad()
def agreement_rows(one: PreTrainedModel, other: PreTrainedModel, blocks: Blocks, batch_size: int) -> list[Row]:
    """A row for each routed MLP that both models have: the share of tokens × neurons that both execute.

    The control is the share that independent choices of the same loads would give, and the difference has a 95 %
    interval over document groups (jackknife).
    """
    mlps = [routed_modules(model, RoutedMLP) for model in (one, other)]
    places = [p for p, m in mlps[0].items() if p in mlps[1] and len(mlps[1][p].permutation) == len(m.permutation)]
    sums: Mapping[str, tuple[Tensor, Tensor, Tensor]] = {
        place: (
            torch.zeros(N_GROUPS, *(m[place].config.n_pathways for m in mlps), dtype=torch.float64),
            torch.zeros(N_GROUPS, mlps[0][place].config.n_pathways, dtype=torch.float64),
            torch.zeros(N_GROUPS, mlps[1][place].config.n_pathways, dtype=torch.float64),
        )
        for place in places
    }
    n = torch.zeros(N_GROUPS, dtype=torch.float64)
    for batch in batches(blocks, batch_size):
        real = batch["doc_ids"].flatten() >= 0
        group = (batch["doc_ids"].flatten() % N_GROUPS)[real]
        n += torch.bincount(group, minlength=N_GROUPS)
        chosen = []
        for model in (one, other):
            with record_routes(model) as routes:
                model.base_model(batch["input_ids"].to(device_of(model)), use_cache=False)
            chosen.append({place: routes[place].chosen.cpu()[real].double() for place in places})
        for place, (joint, first, second) in sums.items():
            a, b = (found[place] for found in chosen)
            first.index_add_(0, group, a)
            second.index_add_(0, group, b)
            joint += torch.stack([a[group == g].T @ b[group == g] for g in range(N_GROUPS)])
    rows, total = [], int(n.sum())
    some = n > 0
    for place, (joint, *loads) in sums.items():
        shared = shared_neurons(mlps[0][place], mlps[1][place])
        both, alone = both_execute(joint.sum(0), (loads[0].sum(0), loads[1].sum(0)), n.sum(), shared)
        rest = [(x.sum(0) - x)[some] for x in (joint, *loads, n)]
        without = both_execute(rest[0], (rest[1], rest[2]), rest[3], shared)
        apart = measured(float(both - alone), without[0] - without[1], total)
        row = row_of(place, "choice_agreement", "", float(both), n=total)
        low, high = finite(apart.low), finite(apart.high)
        rows.append(
            replace(row, control=float(alone), difference=apart.value, difference_low=low, difference_high=high)
        )
    return rows
