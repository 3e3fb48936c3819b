"""What the units of a place (neurons of a layer, pathways, latents) are on for, by every label family at once.

Shapes: n tokens, u units, g document groups, s strata, c classes, r rows of the table (one for each group, stratum and
class of every family), k rows that occur.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional import (
    Score,
    document_specialization_index,
    joint_choices,
    specialization_index,
)
from slms.metrics.states import Sums

N_GROUPS = 16  # document groups of the jackknife, as in `PathwayCounts`
N_GROUPS_GIVEN_TOKEN = 8  # tables given the token are as many times larger as there are strata
_PART = 65_536  # tokens whose ids and classes are held as int64 at once


class Family(NamedTuple):
    """A label family, as the units are counted against it."""

    n_classes: int
    of_documents: bool = False
    """whether a document's tokens all have its class, so that the null permutes documents"""
    strata: Tensor | None = None
    """int64 [v]: of each token id its stratum, −1 where it is left out; None: the family is not conditional"""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the totals: [g, c], or [g, s, c]."""
        if self.strata is None:
            return (N_GROUPS, self.n_classes)
        return (N_GROUPS_GIVEN_TOKEN, int(self.strata.max()) + 1, self.n_classes)


def telling_strata(tokens: Tensor, classes: Tensor, n_classes: int, n_ids: int, most: int = 32) -> tuple[Tensor, float]:
    """The tokens about whose class there is most to tell, as strata [v], and their share of n·H(C | token).

    A token that always has the same class (most words have one part of speech) has nothing to tell beyond itself.

    Args:
        tokens: int [n], below n_ids; classes: int [n], −1 where unknown.
    """
    counts = torch.zeros(n_ids * n_classes, dtype=torch.int64)
    for ids, of_ids in zip(tokens.split(_PART), classes.split(_PART), strict=True):
        known = of_ids >= 0
        counts += torch.bincount(ids[known].long() * n_classes + of_ids[known].long(), minlength=len(counts))
    table = counts.view(n_ids, n_classes).double()
    n = table.sum(1)
    told = torch.special.xlogy(n, n) - torch.special.xlogy(table, table).sum(1)
    best = told.argsort(descending=True, stable=True)[:most]
    best = best[told[best] > 0]
    strata = torch.full((n_ids,), -1)
    strata[best] = torch.arange(len(best))
    return strata, float(told[best].sum() / told.sum()) if told.sum() > 0 else 0.0


class Rows(NamedTuple):
    """A batch's tokens by the row of the table that they add to."""

    row: Tensor
    """int64 [k], the rows with tokens, ascending"""
    size: Tensor
    """int64 [k], tokens of each"""
    token: Tensor
    """int64, the tokens of the first row, then of the second, …"""
    n: int
    """tokens of the batch"""


class CountLayout:
    """Which row of a table of counts a token adds to, for each family; the same for every place.

    Args:
        families: by name. One with strata counts I(U; C | token) over the tokens that have a stratum.
    """

    def __init__(self, families: Mapping[str, Family]):
        self.families, self.slices, start = dict(families), {}, 0
        for name, family in self.families.items():
            size = int(torch.tensor(family.shape).prod())
            self.slices[name] = slice(start, start + size)
            start += size
        self.n_rows = start

    def rows(self, tokens: Tensor, classes: Mapping[str, Tensor], doc_ids: Tensor, kept: Tensor | None = None) -> Rows:
        """The rows of n tokens, for `UnitCounts.update` of every place.

        Args:
            tokens: int64 [n]; classes: of each family int64 [n], −1 where unknown; doc_ids: int64 [n].
            kept: bool [n], False at tokens that do not count.
        """
        rows = []
        for name, family in self.families.items():
            c, known = classes[name], classes[name] >= 0
            if family.strata is None:
                cell = (doc_ids % N_GROUPS) * family.n_classes + c
            else:
                stratum = family.strata.to(tokens.device)[tokens]
                known = known & (stratum >= 0)
                groups = (doc_ids % N_GROUPS_GIVEN_TOKEN) * family.shape[1] + stratum
                cell = groups * family.n_classes + c
            known = known if kept is None else known & kept
            rows.append(torch.where(known, cell + self.slices[name].start, -1))
        flat = torch.stack(rows).flatten()
        order = flat.argsort(stable=True)
        order = order[int((flat < 0).sum()) :]
        row, size = flat[order].unique_consecutive(return_counts=True)
        return Rows(row, size, order % len(tokens), len(tokens))


class UnitCounts(Sums):
    """How often each unit is on in each row of a layout; sums only: exact under DDP, constant memory in tokens (4·r·u).

    Tokens are grouped by row and the rows of `on` added up, u numbers at a time: for many units and few classes this is
    several times as fast as `joint_counts`' product with one-hot classes, and it counts all families in one go.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    def __init__(self, layout: CountLayout, n_units: int):
        super().__init__()
        self.layout, self.n_units = layout, n_units
        self.add_state("counts", torch.zeros(layout.n_rows, n_units, dtype=torch.int32), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(layout.n_rows, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, on: Tensor, rows: Rows) -> None:
        """Add a batch's tokens: on bool [n, u], rows from the layout."""
        if on.dtype != torch.bool or on.shape != (rows.n, self.n_units):
            raise ValueError(f"on is {on.dtype} {tuple(on.shape)}; it must be bool [{rows.n}, {self.n_units}].")
        if not len(rows.row):
            return
        # Sums of ones are exact in float32 up to 2^24 tokens a call.
        first = rows.size.cumsum(0) - rows.size
        sums = torch.nn.functional.embedding_bag(rows.token, on.float(), first, mode="sum")
        self.counts.index_put_((rows.row,), self.counts[rows.row] + sums.int())
        self.totals[rows.row] += rows.size

    def tables(self, family: str) -> tuple[Tensor, Tensor]:
        """Counts [g, (s,) u, c] and totals [g, (s,) c] of a family."""
        where, shape = self.layout.slices[family], self.layout.families[family].shape
        return self.counts[where].unflatten(0, shape).movedim(-1, -2), self.totals[where].view(shape)

    def scores(self, family: str, sample: Tensor | None = None) -> Score:
        """The specialization index of the place and of each unit against a family.

        Args:
            sample: bool [r, u], whether units are on at a sample of the tokens: how they go together, for the null.
        """
        counts, totals = self.tables(family)
        if self.layout.families[family].of_documents:
            # Tables given the token are 16 times larger; their z is then known to an eighth.
            given_token = self.layout.families[family].strata is not None
            return document_specialization_index(counts, totals, n_permutations=30 if given_token else 100)
        if sample is None:
            return specialization_index(counts, totals)
        return specialization_index(counts, totals, joint_choices(sample), len(sample))

    def compute(self) -> dict[str, Score]:
        """The scores of every family, its units taken as independent of each other in the null."""
        return {family: self.scores(family) for family in self.layout.families}
