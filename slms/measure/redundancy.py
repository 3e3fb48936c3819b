"""How redundant pathways are: the loss without each token's best ones (DeepSeekMoE, Dai et al. 2024, arXiv:2401.06066).

The less the loss rises if the next best take their places, the more redundant the pathways are.

Shapes: n tokens, p pathways, d documents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.journal import Journal
from slms.measure.passes import batches, token_nll
from slms.measure.pathways import device_of
from slms.measure.rows import MODEL, Row, finite, row_of
from slms.metrics.functional import document_loss, paired_difference
from slms.metrics.functional.intervals import student_t
from slms.metrics.loss import DocumentLoss
from slms.models.routed import Chooser, Routed, choose_by, record_routes, routed_modules
from slms.routing import Follower, PathwayRouter, Routes

Choose = Callable[[str, Tensor, Routes], Tensor]
"""Maps a place, the scores by which its router selects [n, p] and its routes to a choice, bool [n, p]."""


def ranks(scores: Tensor, chosen: Tensor) -> Tensor:
    """The rank of each pathway at a token, int64 [n, p]: chosen ones first, each part by its scores, 0 the best."""
    order = scores.double() + torch.where(chosen, 1e6, 0.0)
    return order.argsort(dim=1, descending=True, stable=True).argsort(1)


def without_best(scores: Tensor, chosen: Tensor, m: int, replaced: bool, n_shared: int = 0) -> Tensor:
    """The choice, bool [n, p], without each token's m best pathways; shared pathways stay.

    replaced: as many others take their places, the next best by score; else the token executes m fewer.
    """
    rank, size = ranks(scores[:, n_shared:], chosen[:, n_shared:]), chosen[:, n_shared:].sum(1, keepdim=True)
    kept = (rank >= m) & (rank < (size + m if replaced else size))
    return torch.cat([chosen[:, :n_shared], kept], 1)


def without_random(
    scores: Tensor, chosen: Tensor, m: int, replaced: bool, n_shared: int, generator: torch.Generator
) -> Tensor:
    """The same without m pathways drawn from those that the token chose."""
    own = chosen[:, n_shared:]
    rank = ranks(scores[:, n_shared:], own)
    size = own.sum(1, keepdim=True)
    drawn = torch.rand(own.shape, generator=generator).to(own.device).masked_fill(~own, 2.0)
    lost = (drawn.argsort(1).argsort(1) < m) & own
    kept = own & ~lost | ((rank >= size) & (rank < size + lost.sum(1, keepdim=True)) if replaced else False)
    return torch.cat([chosen[:, :n_shared], kept], 1)


def within(scores: Tensor, chosen: Tensor, kept: Tensor, n_shared: int = 0) -> Tensor:
    """The choice if only the pathways `kept`, bool [p], exist: as many of the best of them as the token chose."""
    own = scores[:, n_shared:].masked_fill(~kept[n_shared:], -torch.inf)
    size = chosen[:, n_shared:].sum(1, keepdim=True)
    rank = own.argsort(dim=1, descending=True, stable=True).argsort(1)
    return torch.cat([chosen[:, :n_shared], (rank < size) & kept[n_shared:]], 1)


class Losses:
    """Losses by document of a routed model that executes other choices than its routers'; kept as parts of a journal.

    Args:
        journal: journal of this model and these blocks.
    """

    def __init__(self, model: PreTrainedModel, blocks: Blocks, batch_size: int, journal: Journal | None = None) -> None:
        self.model, self.blocks, self.batch_size = model, blocks, batch_size
        self.modules, self.journal = routed_modules(model), journal or Journal()
        shared = [place for place, module in self.modules.items() if isinstance(module.competing, Tensor)]
        if shared:
            raise ValueError(
                f"{shared[0]} has shared heads (`routing.n_shared_heads`); choices without them cannot be tried."
            )

    def of(self, name: str, choose: Choose | None, documents: Tensor | None = None) -> DocumentLoss:
        """The loss if every place makes this choice; None executes the routers' own.

        documents: bool [d], the documents that count; only their blocks are read.
        """
        made_from = {} if documents is None else {"documents": documents.nonzero()[:, 0].tolist()}
        reading = partial(self._read, choose, documents)
        loss = DocumentLoss()
        loss.nll, loss.tokens = self.journal.part(name, reading, batch_size=self.batch_size, **made_from)
        return loss

    @torch.no_grad()
    def _read(self, choose: Choose | None, documents: Tensor | None) -> tuple[Tensor, Tensor]:
        loss, blocks = DocumentLoss(), self.blocks
        assert blocks.doc_ids is not None
        counted = torch.ones(int(blocks.doc_ids.max()) + 1, dtype=torch.bool) if documents is None else documents
        rows = np.flatnonzero((counted.numpy()[blocks.doc_ids] & (blocks.doc_ids >= 0)).any(1))
        part = blocks._replace(input_ids=blocks.input_ids[rows], doc_ids=blocks.doc_ids[rows], labels={})
        choosers: dict[str, Chooser] = {}
        for place, module in self.modules.items() if choose is not None else ():

            def chooser(_: Tensor, routes: Routes, place: str = place, module: Routed = module) -> Tensor:
                assert choose is not None
                bias = module.router.selection_bias if isinstance(module.router, PathwayRouter | Follower) else 0.0
                return choose(place, routes.scores + bias, routes)

            choosers[place] = chooser
        with choose_by(self.model, choosers), record_routes(self.model):
            for batch in batches(part, self.batch_size):
                nll = token_nll(self.model, batch["input_ids"].to(device_of(self.model))).cpu()
                of_token = batch["doc_ids"][:, 1:].flatten()
                loss.update(nll.flatten(), of_token, (of_token >= 0) & counted[of_token])
        return loss.nll, loss.tokens


def disabled_rows(losses: Losses, most: Sequence[int], seed: int = 0) -> Iterator[Row]:
    """Rows of the loss without each token's m best pathways; the control loses m random ones of those it chose.

    Families: `own` (the routers' choice), `all` (every pathway executes) and `random` (as many, drawn anew for every
    token), whose control is `own`; and `m replaced` or `m fewer` for each m that the routing allows.
    """
    own, shared = losses.of("own", None), {place: one.config.n_shared for place, one in losses.modules.items()}
    yield loss_row("disabled_nats", "own", own)
    everything = losses.of("all", lambda place, scores, routes: torch.ones_like(routes.chosen))
    yield loss_row("disabled_nats", "all", everything, [own])

    def drawn(m: int, replaced: bool, place: str, scores: Tensor, routes: Routes, generator: torch.Generator) -> Tensor:
        return without_random(scores, routes.chosen, m, replaced, shared[place], generator)

    def noise(place: str, scores: Tensor, routes: Routes, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(scores.shape, generator=generator).to(scores)
        return within(drawn, routes.chosen, torch.ones_like(routes.chosen[0]), shared[place])

    def best(m: int, replaced: bool, place: str, scores: Tensor, routes: Routes) -> Tensor:
        return without_best(scores, routes.chosen, m, replaced, shared[place])

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    random = losses.of(f"random, seed {seed}", partial(noise, generator=generator()))
    yield loss_row("disabled_nats", "random", random, [own])
    k = min(module.k - module.config.n_shared for module in losses.modules.values())
    left = min(module.config.n_pathways - module.k for module in losses.modules.values())
    for replaced in (True, False):
        for m in (m for m in most if (m <= left if replaced else m < k)):
            family = f"{m} {'replaced' if replaced else 'fewer'}"
            control = losses.of(f"{family} of all, seed {seed}", partial(drawn, m, replaced, generator=generator()))
            yield loss_row("disabled_nats", family, losses.of(family, partial(best, m, replaced)), [control])


def loss_row(metric: str, family: str, loss: DocumentLoss, controls: Sequence[DocumentLoss] = ()) -> Row:
    """The row of a loss beside the mean of s controls on the same documents.

    The interval of the difference joins the bootstrap over documents with the spread of several controls,
    sd² · (1 + 1/s), as a prediction of one more of them, at s − 1 degrees of freedom.
    """
    row = row_of(MODEL, metric, family, document_loss(loss.nll, loss.tokens))
    if not controls:
        return row
    values = torch.stack([one.nll.sum() / one.tokens.sum() for one in controls])
    apart = paired_difference(loss.nll, torch.stack([one.nll for one in controls]).mean(0), loss.tokens)
    s, sd = len(controls), float(values.std()) if len(controls) > 1 else None
    spread = 0.0 if sd is None else student_t(s - 1) * sd * (1 + 1 / s) ** 0.5
    below, above = ((side**2 + spread**2) ** 0.5 for side in (apart.value - apart.low, apart.high - apart.value))
    return replace(
        row,
        control=float(values.mean()),
        control_sd=sd,
        difference=apart.value,
        difference_low=finite(apart.value - below),
        difference_high=finite(apart.value + above),
    )
