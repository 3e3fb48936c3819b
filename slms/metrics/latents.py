"""What the latents of a sparse coder are used for. Shapes: n tokens, z uses, g groups, s latents, c classes."""

import torch
from torch import Tensor

from slms.metrics.functional import Score, document_specialization_index, specialization_index
from slms.metrics.states import Sums

# Joint uses are s² sums. Above this width they are left out, and with them the null of a layer's score as a whole.
_MOST_TOGETHER = 4096
# Pairs of latents used together that are listed at a time; more a batch are counted by a dense product.
_MOST_PAIRS = 2**24


class LatentCounts(Sums):
    """Count tables of sparsely used units; sums only: exact under DDP, constant memory in tokens (8·g·s·c bytes).

    What `PathwayCounts` is to a few pathways: the uses come as a list of (token, latent) and not as a table.

    Args:
        n_latents: s.
        families: classes of each label family, e.g. `{"pos": 12}`.
        of_documents: families whose labels belong to whole documents, so that the null permutes documents.
        n_groups: document groups of the jackknife behind the intervals.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    n_tokens: Tensor
    uses: Tensor
    together: Tensor

    def __init__(
        self, n_latents: int, families: dict[str, int], of_documents: tuple[str, ...] = ("domain",), n_groups: int = 16
    ):
        super().__init__()
        self.of_documents = of_documents
        self.n_latents, self.families, self.n_groups = n_latents, families, n_groups
        self._add("n_tokens")
        self._add("uses", n_latents)
        if n_latents <= _MOST_TOGETHER:
            self._add("together", n_latents, n_latents)
        for family, n_classes in families.items():
            self._add(f"{family}_counts", n_groups, n_latents, n_classes)
            self._add(f"{family}_totals", n_groups, n_classes)

    def _add(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, tokens: Tensor, latents: Tensor, classes: dict[str, Tensor], doc_ids: Tensor) -> None:
        """Add n tokens.

        Args:
            tokens: int64 [z] ascending, the token of each use, below n.
            latents: int64 [z], the latent used; a token uses each at most once.
            classes: of each family int64 [n], −1 where unknown.
            doc_ids: int64 [n], any integers; documents are grouped by id modulo g.
        """
        if classes.keys() != self.families.keys():
            raise ValueError(f"classes are {sorted(classes)}; they must be the families {sorted(self.families)}.")
        groups, n = doc_ids % self.n_groups, len(doc_ids)
        self.n_tokens += n
        self.uses += torch.bincount(latents, minlength=self.n_latents)
        if self.n_latents <= _MOST_TOGETHER:
            self._count_together(tokens, latents, n)
        for family, n_classes in self.families.items():
            counts, totals = self.tables(family)
            known, c = classes[family] >= 0, classes[family].clamp(min=0)
            totals.view(-1).index_add_(0, groups * n_classes + c, known.long())
            cell = (groups[tokens] * self.n_latents + latents) * n_classes + c[tokens]
            counts.view(-1).index_add_(0, cell, known[tokens].long())

    def _count_together(self, tokens: Tensor, latents: Tensor, n: int) -> None:
        uses = torch.bincount(tokens, minlength=n)
        many = uses[tokens]  # [z] how many pairs each use begins
        if int(many.sum()) > _MOST_PAIRS:
            on = torch.zeros(n, self.n_latents, device=tokens.device)
            on[tokens, latents] = 1.0
            self.together += torch.einsum("nu,nw->uw", on, on).round().long()
            return
        start = (uses.cumsum(0) - uses)[tokens]  # [z] where the token's uses begin
        step = torch.arange(int(many.sum()), device=tokens.device) - (many.cumsum(0) - many).repeat_interleave(many)
        second = latents[start.repeat_interleave(many) + step]
        pair = latents.repeat_interleave(many) * self.n_latents + second
        self.together.view(-1).index_add_(0, pair, torch.ones_like(pair))

    def tables(self, family: str) -> tuple[Tensor, Tensor]:
        """The counts [g, s, c] and totals [g, c] of a family."""
        return getattr(self, f"{family}_counts"), getattr(self, f"{family}_totals")

    def compute(self) -> dict[str, Score]:
        """The specialization index of all latents and of each, by family; see `specialization_index`.

        A family of documents has its labels permuted among documents. Of the others, above 4,096 latents, the score as
        a whole has no null sd and no z (NaN); each latent has.
        """
        scores = {}
        for family in self.families:
            counts, totals = self.tables(family)
            if family in self.of_documents:
                score = document_specialization_index(counts, totals)
            elif self.n_latents > _MOST_TOGETHER:
                score = specialization_index(counts, totals)._replace(null_sd=torch.nan, z=torch.nan)
            else:
                score = specialization_index(counts, totals, self.together, int(self.n_tokens))
            scores[family] = score
        return scores
