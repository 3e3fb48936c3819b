"""Counts, for each unit (neuron, pathway or latent), of the classes of the tokens that switch it on.

Shapes: n tokens, u units, g document groups, s strata, c classes, r cells of the table (one for each group, stratum and
class of every family), k cells that occur in a batch, z uses.
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

N_GROUPS = 16  # document groups of the jackknife behind intervals
N_GROUPS_GIVEN_TOKEN = 8  # tables given the token are larger by a factor of the number of strata
MOST_TOGETHER = 4096  # units whose joint uses are counted, in u² sums; the null of a place's score rests on them
_MOST_PAIRS = 2**24  # pairs of latents used together that are listed at a time; a dense product counts more
_PART = 65_536  # tokens whose ids and classes are held as int64 at a time


class Family(NamedTuple):
    """How units are counted against a label family."""

    n_classes: int
    of_documents: bool = False
    """whether a document's tokens all have its class, so that the null permutes documents"""
    strata: Tensor | None = None
    """int64 [v], the stratum of each token id, −1 to leave it out; None if the family is not conditional"""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the totals: [g, c], or [g, s, c]."""
        if self.strata is None:
            return (N_GROUPS, self.n_classes)
        return (N_GROUPS_GIVEN_TOKEN, int(self.strata.max()) + 1, self.n_classes)


def ambiguous_tokens(
    tokens: Tensor, classes: Tensor, n_classes: int, n_ids: int, most: int = 32
) -> tuple[Tensor, float]:
    """The tokens whose class is most uncertain, as strata [v], and their share of n·H(C | token).

    A token that always has the same class, as most words have one part of speech, tells nothing beyond itself.

    Args:
        tokens: int [n], below n_ids; classes: int [n], −1 if unknown.
    """
    counts = torch.zeros(n_ids * n_classes, dtype=torch.int64)
    for ids, of_ids in zip(tokens.split(_PART), classes.split(_PART), strict=True):
        known = of_ids >= 0
        counts += torch.bincount(ids[known].long() * n_classes + of_ids[known].long(), minlength=len(counts))
    table = counts.view(n_ids, n_classes).double()
    n = table.sum(1)
    open_ = torch.special.xlogy(n, n) - torch.special.xlogy(table, table).sum(1)
    best = open_.argsort(descending=True, stable=True)[:most]
    best = best[open_[best] > 0]
    strata = torch.full((n_ids,), -1)
    strata[best] = torch.arange(len(best))
    return strata, float(open_[best].sum() / open_.sum()) if open_.sum() > 0 else 0.0


class Cells(NamedTuple):
    """A batch's tokens, sorted by the cells of the table to which they add."""

    of_token: Tensor
    """int64 [families, n], the cell of each token in each family; −1 for none"""
    cell: Tensor
    """int64 [k], the cells with tokens, ascending"""
    size: Tensor
    """int64 [k], number of tokens in each"""
    token: Tensor
    """int64, the tokens of the first cell, then of the second, …"""
    kept: Tensor | None
    """bool [n], False at tokens that do not count; None if all count"""


class Uses(NamedTuple):
    """Which units are on, as a list instead of a table, since a token uses few of many latents."""

    tokens: Tensor
    """int64 [z], the token of each use, ascending, below n"""
    units: Tensor
    """int64 [z], the unit of each use; a token uses a unit at most once"""


class CountLayout:
    """Finds the cell of a count table to which a token adds, for each family; the same for every place.

    Args:
        families: families by name. One with strata counts I(U; C | token) over the tokens that have a stratum.
    """

    def __init__(self, families: Mapping[str, Family]):
        self.families, self.slices, start = dict(families), {}, 0
        for name, family in self.families.items():
            size = int(torch.tensor(family.shape).prod())
            self.slices[name] = slice(start, start + size)
            start += size
        self.n_cells = start

    def cells(
        self, tokens: Tensor, classes: Mapping[str, Tensor], doc_ids: Tensor, kept: Tensor | None = None
    ) -> Cells:
        """The cells of n tokens, for `UnitCounts.update` of every place.

        Args:
            tokens: int64 [n], token ids; classes: for each family int64 [n], −1 if unknown.
            doc_ids: int64 [n], any integers; documents are grouped by id modulo g.
            kept: bool [n], False at tokens that do not count.
        """
        if classes.keys() != self.families.keys():
            raise ValueError(f"classes are {sorted(classes)}; they must be the families {sorted(self.families)}.")
        of_token = []
        for name, family in self.families.items():
            c, known = classes[name].long(), classes[name] >= 0
            if family.strata is None:
                cell = (doc_ids % N_GROUPS) * family.n_classes + c
            else:
                stratum = family.strata.to(tokens.device)[tokens]
                known = known & (stratum >= 0)
                groups = (doc_ids % N_GROUPS_GIVEN_TOKEN) * family.shape[1] + stratum
                cell = groups * family.n_classes + c
            known = known if kept is None else known & kept
            of_token.append(torch.where(known, cell + self.slices[name].start, -1))
        table = torch.stack(of_token) if of_token else tokens.new_empty(0, len(tokens))
        flat = table.flatten()
        order = flat.argsort(stable=True)
        order = order[int((flat < 0).sum()) :]
        cell, size = flat[order].unique_consecutive(return_counts=True)
        return Cells(table, cell, size, order % len(tokens), kept)


class UnitCounts(Sums):
    """Counts how often each unit is on in each cell of a layout; exact under DDP, in constant memory (4·r·u bytes).

    It groups tokens by cell and adds up the rows of `on`, u numbers at a time. For many units and few classes this is
    several times as fast as `joint_counts`' product with one-hot classes, and it counts all families in one go.

    Args:
        layout: the cells.
        n_units: u.
        together: whether to count which units are on together, which the null of a place's score needs if there is no
            sample of tokens; never done above 4,096 units.
    """

    counts: Tensor
    totals: Tensor
    uses: Tensor
    whole: Tensor
    n_tokens: Tensor
    together: Tensor | None

    def __init__(self, layout: CountLayout, n_units: int, together: bool = False):
        super().__init__()
        self.layout, self.n_units = layout, n_units
        self.add_state("counts", torch.zeros(layout.n_cells, n_units, dtype=torch.int32), dist_reduce_fx="sum")
        for name, shape in {"totals": (layout.n_cells,), "uses": (n_units,), "whole": (), "n_tokens": ()}.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        if together and n_units <= MOST_TOGETHER:
            self.add_state("together", torch.zeros(n_units, n_units, dtype=torch.int64), dist_reduce_fx="sum")
        else:
            self.together = None

    def update(self, on: Tensor | Uses, cells: Cells) -> None:
        """Add a batch's tokens: which units are on, bool [n, u] or a list of uses, and the tokens' cells."""
        self.n_tokens += cells.of_token.shape[1] if cells.kept is None else cells.kept.sum()
        self.totals[cells.cell] += cells.size
        if isinstance(on, Uses):
            self._add_uses(on, cells)
        else:
            self._add_table(on, cells)

    def _add_table(self, on: Tensor, cells: Cells) -> None:
        n = cells.of_token.shape[1]
        if on.dtype != torch.bool or on.shape != (n, self.n_units):
            raise ValueError(f"on is {on.dtype} {tuple(on.shape)}; it must be bool [{n}, {self.n_units}].")
        kept = on if cells.kept is None else on[cells.kept]
        self.uses += kept.sum(0)
        self.whole += kept.all(1).sum()
        if self.together is not None:
            self.together += joint_choices(kept)
        if len(cells.cell):
            # Sums of ones are exact in float32 up to 2^24 tokens a call.
            first = cells.size.cumsum(0) - cells.size
            sums = torch.nn.functional.embedding_bag(cells.token, on.float(), first, mode="sum")
            self.counts.index_put_((cells.cell,), self.counts[cells.cell] + sums.int())

    def _add_uses(self, on: Uses, cells: Cells) -> None:
        tokens, units = on if cells.kept is None else (part[cells.kept[on.tokens]] for part in on)
        self.uses += torch.bincount(units, minlength=self.n_units)
        if self.together is not None:
            _add_together(self.together, tokens, units, cells.of_token.shape[1])
        for of_token in cells.of_token:
            cell = of_token[tokens]
            entry = (cell * self.n_units + units)[cell >= 0]
            self.counts.view(-1).index_add_(0, entry, torch.ones_like(entry, dtype=torch.int32))

    def tables(self, family: str) -> tuple[Tensor, Tensor]:
        """Counts [g, (s,) u, c] and totals [g, (s,) c] of a family."""
        where, shape = self.layout.slices[family], self.layout.families[family].shape
        return self.counts[where].unflatten(0, shape).movedim(-1, -2).contiguous(), self.totals[where].view(shape)

    def joint(self, totals: Tensor) -> Tensor | None:
        """How often units are on together, [u, u], scaled to the tokens [g, c] that carry a label."""
        return None if self.together is None else self.together.double() * (totals.sum() / self.n_tokens)

    def score(self, family: str, sample: Tensor | None = None) -> Score:
        """The specialization index of the place and of each unit against a family.

        Without a sample and without joint uses, the place's null sd is NaN; that of each unit is known.

        Args:
            sample: bool [r, u], whether units are on at a sample of tokens, which shows the null how they go together.
        """
        counts, totals = self.tables(family)
        if self.layout.families[family].of_documents:
            # Tables given the token are 16 times larger, so fewer permutations are drawn and z is known to an eighth.
            given_token = self.layout.families[family].strata is not None
            return document_specialization_index(counts, totals, n_permutations=30 if given_token else 100)
        if sample is not None:
            return specialization_index(counts, totals, joint_choices(sample), len(sample))
        score = specialization_index(counts, totals, self.joint(totals))
        return score if self.together is not None else score._replace(null_sd=torch.nan, z=torch.nan)

    def compute(self) -> dict[str, Score]:
        """The scores of every family."""
        return {family: self.score(family) for family in self.layout.families}


def _add_together(together: Tensor, tokens: Tensor, units: Tensor, n: int) -> None:
    """Add to `together` [u, u] how often two units are used at the same one of n tokens."""
    uses = torch.bincount(tokens, minlength=n)
    many = uses[tokens]  # [z] how many pairs each use begins
    if int(many.sum()) > _MOST_PAIRS:
        on = torch.zeros(n, len(together), dtype=torch.bool, device=tokens.device)
        on[tokens, units] = True
        together += joint_choices(on)
        return
    start = (uses.cumsum(0) - uses)[tokens]  # [z] where the token's uses begin
    step = torch.arange(int(many.sum()), device=tokens.device) - (many.cumsum(0) - many).repeat_interleave(many)
    second = units[start.repeat_interleave(many) + step]
    pair = units.repeat_interleave(many) * len(together) + second
    together.view(-1).index_add_(0, pair, torch.ones_like(pair))
