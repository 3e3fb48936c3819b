"""The loss on a domain if only the pathways that it uses most exist (the retention curve of EMO, arXiv:2605.06663).

The pathways are chosen on other documents of the domain than those that are scored.

Shapes: d documents, p pathways.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.passes import batches
from slms.measure.pathways import device_of
from slms.measure.redundancy import Losses, loss_row, within
from slms.measure.rows import Row
from slms.metrics.loss import DocumentLoss
from slms.models.routed import record_routes, routed_modules
from slms.routing import Routes

FEWEST = 8  # documents of a domain


class Domain(NamedTuple):
    """The documents of one domain; half of them choose its pathways, and the other half are scored."""

    name: str
    choosing: Tensor
    """bool [d]"""
    scored: Tensor
    """bool [d]"""


def domains_of(blocks: Blocks, family: str, fewest: int = FEWEST) -> list[Domain]:
    """The domains of a label family of documents that have enough documents, in the order of its classes."""
    assert blocks.doc_ids is not None
    labels, documents = blocks.labels[family].astype(np.int64), blocks.doc_ids.astype(np.int64)
    n_documents = int(documents.max()) + 1
    found = []
    for index, name in enumerate(blocks.label_names[family]):
        mine = np.unique(documents[(labels == index) & (documents >= 0)])
        if len(mine) >= fewest:
            halves = torch.zeros(2, n_documents, dtype=torch.bool)
            halves[0, mine[0::2]], halves[1, mine[1::2]] = True, True
            found.append(Domain(name, halves[0], halves[1]))
    return found


def most_used(uses: Tensor, share: float, n_shared: int = 0) -> Tensor:
    """The share of the routed pathways with the most uses [p], at least one, bool [p]; shared ones are kept as well."""
    size = max(1, round(share * (len(uses) - n_shared)))
    kept = torch.zeros(len(uses), dtype=torch.bool)
    kept[:n_shared] = True
    kept[n_shared + uses[n_shared:].argsort(descending=True, stable=True)[:size]] = True
    return kept


@torch.no_grad()
def uses_by_document(model: PreTrainedModel, blocks: Blocks, batch_size: int) -> Mapping[str, Tensor]:
    """How often each document's tokens choose each pathway, by place, float64 [d, p]."""
    assert blocks.doc_ids is not None
    d = int(blocks.doc_ids.max()) + 1
    modules = routed_modules(model)
    uses = {place: torch.zeros(d, m.config.n_pathways, dtype=torch.float64) for place, m in modules.items()}
    for batch in batches(blocks, batch_size):
        documents = batch["doc_ids"].flatten()
        real = documents >= 0
        with record_routes(model) as routes:
            model.base_model(batch["input_ids"].to(device_of(model)), use_cache=False)
        for place, table in uses.items():
            table.index_add_(0, documents[real], routes[place].chosen.cpu()[real].double())
    return uses


def retention_rows(
    losses: Losses,
    uses: Mapping[str, Tensor],
    domains: Sequence[Domain],
    shares: Sequence[float],
    draws: int = 3,
    seed: int = 0,
) -> Iterator[Row]:
    """Rows of the loss on each domain's scored documents if only a share of the pathways exists, in every place.

    `retained_nats` keeps the pathways that the domain's choosing documents use most; its control keeps random subsets
    of equal size. `retained_other_nats` is the same number beside the set of the next domain, and
    `retained_whole_nats` beside all pathways. Routers choose among what is kept, as many as before if there are.
    """
    shared = {place: module.config.n_shared for place, module in losses.modules.items()}
    own = losses.of("own", None)

    def kept(sets: Mapping[str, Tensor], place: str, scores: Tensor, routes: Routes) -> Tensor:
        return within(scores, routes.chosen, sets[place].to(scores.device), shared[place])

    def set_of(domain: Domain, share: float) -> dict[str, Tensor]:
        return {p: most_used(table[domain.choosing].sum(0), share, shared[p]) for p, table in uses.items()}

    def subset(share: float, draw: int) -> DocumentLoss:
        generator = torch.Generator().manual_seed(1000 * seed + draw)
        order = {p: torch.rand(table.shape[1], generator=generator) for p, table in uses.items()}
        sets = {p: most_used(drawn, share, shared[p]) for p, drawn in order.items()}
        return losses.of(f"random {share}, seed {seed}, draw {draw}", partial(kept, sets))

    for share in shares:
        random = [subset(share, draw) for draw in range(draws)]
        for domain, other in zip(domains, [*domains[1:], domains[0]], strict=True):
            family = f"{domain.name} {share:.4g}"
            mine, others = (
                losses.of(
                    f"{share} of {one.name}, scored on {domain.name}", partial(kept, set_of(one, share)), domain.scored
                )
                for one in (domain, other)
            )
            yield loss_row("retained_nats", family, mine, [_only(loss, domain.scored) for loss in random])
            if len(domains) > 1:
                yield loss_row("retained_other_nats", family, mine, [others])
            yield loss_row("retained_whole_nats", family, mine, [_only(own, domain.scored)])


def _only(loss: DocumentLoss, documents: Tensor) -> DocumentLoss:
    """The loss of some documents, bool [d]."""
    found, kept = DocumentLoss(), torch.zeros(len(loss.nll), dtype=torch.bool)
    kept[documents.nonzero()[:, 0] % len(kept)] = True
    found.nll, found.tokens = loss.nll * kept, loss.tokens * kept
    return found
