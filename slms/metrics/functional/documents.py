"""Specialization index for labels of whole documents, such as their task or domain.

Shapes: g document groups, s strata, u units (pathways, neurons, latents), c classes, q permutations, k cells.
"""

import torch
from torch import Tensor

from slms.metrics.functional.intervals import jackknife
from slms.metrics.functional.score import Score, against_null, undefined
from slms.metrics.functional.specialization import (
    class_entropy,
    event_information,
    in_parts,
    information_left_out,
    mutual_information,
    stratified,
)


def document_specialization_index(counts: Tensor, totals: Tensor, n_permutations: int = 100, seed: int = 0) -> Score:
    """`specialization_index` with labels permuted among documents instead of tokens.

    The tokens of a document share its names and its turns of phrase, so a unit's rate differs between documents
    whatever their label. If labels are permuted among tokens, this is lost, and a unit that follows nothing but the
    document scores z in the hundreds against labels that mean nothing. The documents of one group and class form a
    cell, and cells are permuted; with few documents in a cell this amounts to permuting documents.

    Units' values, `value`, strata and `ceiling` are as in `specialization_index`; the mean and sd of the null come from
    `n_permutations` draws.

    Args:
        counts: [g, u, c] or [g, s, u, c]; totals: [g, c] or [g, s, c]; the class of a document's tokens is one.
    """
    counts, totals = stratified(counts, totals)
    n, on = int(totals.sum()), counts.sum((0, 1, 3))
    used, seen = totals.sum(1) > 0, totals.sum((0, 1)) > 0  # [g, c], [c]
    if seen.sum() < 2:
        return undefined(n, len(on))
    everything, every, events = counts.sum(0), totals.sum(0), counts.sum()

    # Cells become rows, which are added up again under other labels: [k, s, u] and [k, s].
    cell_counts, cell_totals = counts.permute(0, 3, 1, 2)[used], totals.permute(0, 2, 1)[used]
    label = used.nonzero()[:, 1]
    generator = torch.Generator().manual_seed(seed)
    drawn = label[torch.stack([torch.randperm(len(label), generator=generator) for _ in range(n_permutations)])]
    null_units, null_events = [], []
    for part in in_parts(drawn, everything.numel()):
        member = torch.nn.functional.one_hot(part, totals.shape[2]).double()
        permuted = torch.einsum("ksu,qkc->qsuc", cell_counts, member), torch.einsum("ks,qkc->qsc", cell_totals, member)
        null_units.append(mutual_information(*permuted))
        null_events.append(event_information(*permuted)[0].sum(-1) / events)
    of_units, of_events = torch.cat(null_units), torch.cat(null_events)

    entropy = class_entropy(every)
    told, bound = (part.sum() / events for part in event_information(everything, every))
    chance, scale = of_events.mean(), entropy - of_events.mean()
    value, null_sd = float((told - chance) / scale), float(of_events.std() / scale)
    some = used.any(1)
    without = information_left_out(counts[some], totals[some])
    half = float(jackknife(without))
    unit_chance = of_units.mean(0)
    excess = mutual_information(everything, every) - unit_chance
    return Score(
        **against_null(value, half, float(chance / entropy), null_sd),
        ceiling=float(bound / entropy),
        n=n,
        units=torch.where(on > 0, excess / (entropy - unit_chance), torch.nan),
        units_z=torch.where((on > 0) & (of_units.std(0) > 0), excess / of_units.std(0), torch.nan),
        left_out=without,
    )
