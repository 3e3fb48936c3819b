"""What the pathways of one layer are chosen for. Shapes: n tokens, g document groups, p pathways, c classes."""

from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional import (
    Score,
    Utilization,
    document_specialization_index,
    entropy,
    joint_choices,
    joint_counts,
    purity,
    purity_legacy,
    specialization_index,
    utilization,
)
from slms.metrics.states import Sums


class FamilyScores(NamedTuple):
    """What one family of classes (token ids, parts of speech, …) says about a layer's pathways."""

    purity: Score
    purity_legacy: Tensor
    """[p], NaN below 10 events"""
    entropy: Tensor
    """[p], H(class | pathway) in nats, Chao–Shen; NaN for a pathway never chosen"""
    specialization: Score
    given_token: Score | None
    """the specialization index conditional on the token, where it was asked for"""


class LayerScores(NamedTuple):
    utilization: Utilization
    families: dict[str, FamilyScores]


class PathwayCounts(Sums):
    """Count tables of one routed layer; sums only: exact under DDP, constant memory in tokens (8·g·p·c bytes a family).

    Args:
        n_pathways: number of pathways p.
        families: classes of each family, e.g. `{"token": 2048, "pos": 12}`.
        given_token: families whose specialization is also computed conditional on the family `token`; each keeps a
            table of 8 · tokens · p · c bytes per group, in 4 groups.
        n_groups: document groups of the jackknife behind the intervals.
        of_documents: families whose classes belong to whole documents: their null permutes documents, not tokens.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    # Conditional tables are large; four groups still give their score an interval (of three degrees of freedom).
    conditional_groups = 4

    def __init__(
        self, n_pathways: int, families: dict[str, int], given_token: tuple[str, ...] = (), n_groups: int = 16,
        of_documents: tuple[str, ...] = ("domain",),
    ) -> None:  # fmt: skip
        super().__init__()
        if given_token and "token" not in families:
            raise ValueError(f"given_token is {given_token}; families {tuple(families)} must then hold 'token'.")
        self.n_pathways, self.families, self.given_token, self.n_groups = n_pathways, families, given_token, n_groups
        self.of_documents = of_documents
        self._add("together", n_pathways, n_pathways)
        self._add("n_tokens")
        for family, n_classes in families.items():
            self._add(f"{family}_counts", n_groups, n_pathways, n_classes)
            self._add(f"{family}_totals", n_groups, n_classes)
        for family in given_token:
            strata = self.conditional_groups * families["token"]
            self._add(f"{family}_counts_given_token", strata, n_pathways, families[family])
            self._add(f"{family}_totals_given_token", strata, families[family])

    def _add(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, chosen: Tensor, classes: dict[str, Tensor], doc_ids: Tensor, mask: Tensor | None = None) -> None:
        """Add tokens.

        Args:
            chosen: bool [n, p].
            classes: of each family int64 [n], −1 where unknown.
            doc_ids: int64 [n], any integers; documents are grouped by id modulo g.
            mask: bool [n], False at padding.
        """
        if classes.keys() != self.families.keys():
            raise ValueError(f"classes are {sorted(classes)}; they must be the families {sorted(self.families)}.")
        if mask is not None:
            chosen, doc_ids = chosen[mask], doc_ids[mask]
            classes = {family: ids[mask] for family, ids in classes.items()}
        self.together += joint_choices(chosen)
        self.n_tokens += len(chosen)
        for family, n_classes in self.families.items():
            joint_counts(chosen, classes[family], n_classes, doc_ids % self.n_groups, out=self.tables(family))
        for family in self.given_token:
            stratum = (doc_ids % self.conditional_groups) * self.families["token"] + classes["token"].clamp(min=0)
            known = torch.where(classes["token"] >= 0, classes[family], -1)
            joint_counts(chosen, known, self.families[family], stratum, out=self._tables_given_token(family))

    def tables(self, family: str) -> tuple[Tensor, Tensor]:
        """The counts [g, p, c] and totals [g, c] of a family."""
        return getattr(self, f"{family}_counts"), getattr(self, f"{family}_totals")

    def _tables_given_token(self, family: str) -> tuple[Tensor, Tensor]:
        return getattr(self, f"{family}_counts_given_token"), getattr(self, f"{family}_totals_given_token")

    def compute(self) -> LayerScores:
        """Every score of the layer; NaN where there is too little to count."""
        return LayerScores(
            utilization=utilization(self.together.diagonal()),
            families={family: self._scores(family) for family in self.families},
        )

    def _scores(self, family: str) -> FamilyScores:
        counts, totals = self.tables(family)
        given_token = None
        if family in self.given_token:
            strata = (self.conditional_groups, self.families["token"])
            conditional, conditional_totals = (table.unflatten(0, strata) for table in self._tables_given_token(family))
            given_token = specialization_index(conditional, conditional_totals, self._scaled_together(totals))
        together = self._scaled_together(totals)
        if family in self.of_documents:
            specialization = document_specialization_index(counts, totals)
        else:
            specialization = specialization_index(counts, totals, together)
        return FamilyScores(
            purity=purity(counts, totals, together),
            purity_legacy=purity_legacy(counts),
            entropy=entropy(counts.sum(0)),
            specialization=specialization,
            given_token=given_token,
        )

    def _scaled_together(self, totals: Tensor) -> Tensor:
        """Joint choices at the number of tokens that carry a label: correlations of choices are those of all tokens."""
        return self.together.double() * (totals.sum() / self.n_tokens)
