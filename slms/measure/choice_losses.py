"""The loss if other choices than the routers' are executed: those of the largest outputs, and of random routers.

Shapes: n tokens, d model, p pathways.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.passes import batches, token_nll
from slms.measure.pathways import device_of
from slms.measure.rows import MODEL, Row, beside_control, finite, row_of
from slms.measure.schema import ControlRow
from slms.metrics.functional import document_loss, largest
from slms.metrics.loss import DocumentLoss
from slms.models.contributions import contribution_norms
from slms.models.routed import Chooser, choose_by, record_routes, routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.routing import Routes


@torch.no_grad()
def choice_rows(
    model: PreTrainedModel, blocks: Blocks, batch_size: int, routers: Sequence[Mapping[str, Chooser]]
) -> list[Row]:
    """The loss if other choices are executed in every place at once, each beside that of the routers' own choices.

    There is no oracle if heads are routed: what a head writes depends on more than the input of its router.
    """
    own, best = _loss(model, blocks, batch_size, {}), oracle_choosers(model)
    rivals = {"oracle": _loss(model, blocks, batch_size, best)} if best.keys() == routed_modules(model).keys() else {}
    random = [_loss(model, blocks, batch_size, choosers) for choosers in routers]
    mean = DocumentLoss()
    mean.nll, mean.tokens = torch.stack([loss.nll for loss in random]).mean(0), random[0].tokens
    rivals["random_router"] = mean
    rows = []
    for name, loss in rivals.items():
        value, minus = document_loss(loss.nll, loss.tokens), loss.minus(own)
        row = row_of(MODEL, "choice_nats", name, value)
        apart = ControlRow(
            *row.key, value.value - minus.value, None, minus.value, finite(minus.low), finite(minus.high)
        )
        rows += beside_control([row], [apart])
    return rows


def _loss(model: PreTrainedModel, blocks: Blocks, batch_size: int, choosers: Mapping[str, Chooser]) -> DocumentLoss:
    loss = DocumentLoss()
    with choose_by(model, choosers), record_routes(model):  # recorded routes keep to one way of executing
        for batch in batches(blocks, batch_size):
            nll = token_nll(model, batch["input_ids"].to(device_of(model))).cpu()
            loss.update(nll.flatten(), batch["doc_ids"][:, 1:].flatten(), batch["doc_ids"][:, 1:].flatten() >= 0)
    return loss


def oracle_choosers(model: nn.Module) -> dict[str, Chooser]:
    """By place of routed MLPs, a function that chooses as many pathways as the router, those of largest output norm."""
    found: dict[str, Chooser] = {}
    for place, mlp in routed_modules(model, RoutedMLP).items():
        norms, shared = contribution_norms(mlp), mlp.config.n_shared

        def choose(x: Tensor, routes: Routes, norms=norms, shared: int = shared) -> Tensor:
            return largest(norms(x), routes.chosen, shared)

        found[place] = choose
    return found
