"""The loss increase of every class of tokens when a set of neurons is ablated in one MLP or attention.

Shapes: b blocks, t position, n predicted tokens (b·(t − 1)), f neurons, s sets of neurons, d documents, c classes,
r permutations.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.journal import Journal
from slms.measure.passes import batches, token_nll
from slms.measure.random_sets import neurons_at
from slms.metrics.functional.causal import CausalScore, causal_specialization
from slms.models.place import layer_of
from slms.models.resumed import Resumed
from slms.models.sites import replaced

MOST_DOCUMENTS = 1024  # of more, several count as one

Told = Callable[[str, float], object]
"""A function that is called with what was ablated, in words, and the loss increase in nats per token."""


class ClassSums(NamedTuple):
    """How much the loss of a label family's classes increases without each of several sets of neurons of one place."""

    sums: Tensor
    """float64 [d, s, c], nats, summed over tokens"""
    totals: Tensor
    """float64 [d, c], number of tokens"""
    null_sums: Tensor
    """float64 [r, 2, s, c], under permuted labels, over the documents of even and of odd index"""
    null_totals: Tensor
    """float64 [r, 2, c]"""

    def score(self) -> CausalScore:
        """The causal specialization of the sets."""
        return causal_specialization(*self)


class TokenLosses(NamedTuple):
    """The losses of the whole model on the blocks, and the labels of the tokens that it predicts."""

    nll: Tensor
    """fp32 [n], nats"""
    document: Tensor
    """int64 [n], index of the document, in the order in which documents begin"""
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
    _, document = predicted(blocks.doc_ids).unique(return_inverse=True)
    return TokenLosses(nll, document % MOST_DOCUMENTS, labels)


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


class Ablated:
    """Losses without sets of neurons of one place. Layers before it run once, for all sets.

    Args:
        mean: [f], what replaces a neuron's activation, in dense order; None replaces it by 0.
    """

    def __init__(
        self, model: PreTrainedModel, blocks: Blocks, place: str, mean: Tensor | None, batch_size: int
    ) -> None:
        self.model, self.site, self.resumed = model, neurons_at(place), Resumed(model, layer_of(place))
        self.mean = torch.zeros(()) if mean is None else mean
        self._ids = [batch["input_ids"].to(model.device) for batch in batches(blocks, batch_size)]
        self._hidden: list[Tensor] = []

    @torch.inference_mode()
    def without(self, taken: Tensor, most: int | None = None) -> Tensor:
        """Nats of each predicted token, fp32 [n], without the neurons `taken`, bool [f]; `most` batches are read."""
        taken, other, parts = taken.to(self.model.device), self.mean.to(self.model.device), []
        for i, ids in enumerate(self._ids[:most]):
            if i == len(self._hidden):
                self._hidden.append(self.resumed.read(ids))
            by = replaced(self.model, self.site, self.site, lambda _, a: torch.where(taken, other.to(a), a))
            with self.resumed.entering(self._hidden[i]), by:
                parts.append(token_nll(self.model, ids).flatten().cpu())
        return torch.cat(parts)

    def seconds(self) -> float:
        """How long the losses without one set take, judged by one batch."""
        nothing = torch.zeros(len(self.mean) if self.mean.dim() else 1, dtype=torch.bool)
        self.without(nothing, most=1)
        started = time.monotonic()
        self.without(nothing, most=1)
        return (time.monotonic() - started) * len(self._ids)


def ablate(
    ablated: Ablated,
    sets: Tensor,
    whole: TokenLosses,
    n_classes: Mapping[str, int],
    names: Sequence[str],
    told: Told = lambda name, nats: None,
    journal: Journal | None = None,
    **made_from: object,
) -> dict[str, ClassSums]:
    """Ablate each of several sets of neurons of one place; returns family → loss increases.

    Args:
        sets: bool [s, f], the neurons of each set in dense order.
        whole: from `whole_losses` on the same blocks.
        n_classes: number of classes of each family.
        names: what each set is called when `told` is called, which happens after each.
        journal: journal of this model and these blocks; it keeps the sums without each set.
        made_from: what else these sums depend on.
    """
    journal = journal or Journal()

    def sums(taken: Tensor) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
        rise = (ablated.without(taken) - whole.nll).double()
        return float(rise.mean()), {family: _sums(rise, whole, family, c) for family, c in n_classes.items()}

    found = []
    for name, taken in zip(names, sets, strict=True):
        about = {"site": ablated.site.name, "neurons": taken.nonzero()[:, 0].tolist(), "families": list(n_classes)}
        nats, of_set = journal.part(f"without {ablated.site.name}", partial(sums, taken), **about, **made_from)
        told(name, nats)
        found.append(of_set)
    tables = {}
    for family, c in n_classes.items():
        totals, null_totals = _sums(torch.ones(len(whole.nll), dtype=torch.float64), whole, family, c)
        of_sets = [of_set[family] for of_set in found] or [(totals[:, None][:, :0], null_totals[:, :, None][:, :, :0])]
        true, null = zip(*of_sets, strict=True)
        stacked = (torch.stack(true, 1), torch.stack(null, 2)) if found else (true[0], null[0])
        tables[family] = ClassSums(stacked[0], totals, stacked[1], null_totals)
    return tables


def _sums(x: Tensor, whole: TokenLosses, family: str, c: int) -> tuple[Tensor, Tensor]:
    """Sum x [n] by document and class, [d, c], and by half and permuted class, [r, 2, c]."""
    labels = whole.labels[family]
    known = labels[0] >= 0
    x, document, labels = x[known], whole.document[known], labels[:, known]
    d = int(whole.document.max()) + 1
    true = torch.bincount(document * c + labels[0], x, minlength=d * c).view(d, c)
    null = [torch.bincount(document % 2 * c + row, x, minlength=2 * c).view(2, c) for row in labels[1:]]
    return true, torch.stack(null) if null else true.new_zeros(0, 2, c)
