"""From a model and text to the numbers of a results file: one pass over the blocks, the same for training and eval.py.

Shapes: b blocks, t position, n tokens (b·t), p pathways, c classes.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from slms.data.text import Blocks
from slms.measure.classes import TextClasses, labels_of
from slms.measure.passes import batches, token_nll
from slms.measure.schema import DocumentSums, Labels, Layer, Loss, LossDifference, Losses
from slms.metrics.functional import document_loss
from slms.metrics.loss import DocumentLoss
from slms.metrics.units import UnitCounts
from slms.models.place import layer_of
from slms.models.routed import Routed, record_routes, routed_modules
from slms.report.describe import describe_layer
from slms.routing import Routes


class PathwayTables:
    """The count tables of every routed module, fed with the routes and the batch of a forward pass.

    Args:
        modules: the routed modules by place.
        blocks: the text that will be measured: its label families, and its distinct tokens, which are classes too.
        given_token: families whose SI is also computed conditional on the token; slow, for final measurements.
        alone: one rank counts everything by itself, instead of every rank its share.
    """

    def __init__(
        self,
        modules: Mapping[str, Routed],
        blocks: Blocks,
        given_token: tuple[str, ...] = (),
        alone: bool = False,
    ):
        self.classes = TextClasses(blocks, given_token=given_token, tokens=True)
        self._texts: list[str] = []
        self.offsets = {place: module.offsets for place, module in modules.items()}
        self.counts = {
            place: UnitCounts(self.classes.layout, module.config.n_pathways, together=True).to(device_of(module))
            for place, module in modules.items()
        }
        if alone:
            for counts in self.counts.values():
                counts.distributed_available_fn = lambda: False

    def update(self, routes: Mapping[str, Routes], batch: Mapping[str, Tensor]) -> None:
        """Add the tokens of one batch: routes flattened [b·t], batch entries [b, t]."""
        cells = self.classes.cells(batch)
        for place, counts in self.counts.items():
            counts.update(routes[place].chosen, cells)

    def reset(self) -> None:
        """Forget all tokens."""
        for counts in self.counts.values():
            counts.reset()

    def compute(self, tokenizer: PreTrainedTokenizerBase | None) -> list[Layer]:
        """Every layer as a results file holds it; under DDP over the tokens of all ranks, so every rank calls it."""
        assert self.classes.token_ids is not None
        self._texts = self._texts or token_texts(tokenizer, self.classes.token_ids.tolist())
        layers, names = [], self.classes.label_names
        for place, counts in self.counts.items():
            with counts.sync_context():
                layers.append(describe_layer(layer_of(place), counts, self.offsets[place], self._texts, names))
        return layers


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next(module.parameters()).device


class Measurement(NamedTuple):
    """What one pass over the text yields."""

    loss: DocumentLoss
    layers: list[Layer]
    labels: dict[str, Labels]


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    blocks: Blocks,
    batch_size: int,
    given_token: tuple[str, ...] = (),
) -> Measurement:
    """Loss by document, and for every routed layer what its pathways serve, over all `blocks`.

    Args:
        blocks: validation blocks, with documents and labels.
        batch_size: blocks of one forward pass.
        given_token: as in `PathwayTables`.
    """
    device, was_training = device_of(model), model.training
    tables = PathwayTables(routed_modules(model), blocks, given_token, alone=True)
    loss = DocumentLoss().to(device)
    model.eval()
    for batch in batches(blocks, batch_size):
        batch = {name: column.to(device) for name, column in batch.items()}
        with record_routes(model) as routes:
            nll = token_nll(model, batch["input_ids"])
        loss.update(nll.flatten(), batch["doc_ids"][:, 1:].flatten())
        tables.update(routes, batch)
    model.train(was_training)
    return Measurement(loss.cpu(), tables.compute(tokenizer), labels_of(blocks))


def random_model(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A model of the same shape with random weights, routers included: the second null of every headline number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(model.config)
    return made.to(device_of(model)).eval()


def loss_of(sums: DocumentLoss) -> Loss:
    """Loss and perplexity with the interval over documents."""
    nll, tokens = cast(Tensor, sums.nll), cast(Tensor, sums.tokens)
    nats = document_loss(nll, tokens)  # not `sums.compute()`, which under DDP would wait for other ranks
    return Loss(nats.value, nats.low, nats.high, math.exp(nats.value), int((tokens > 0).sum()), nats.n)


def losses_of(model: DocumentLoss, dense: DocumentLoss | None) -> Losses:
    """The model beside the dense base it started from, with the paired difference."""
    nll, tokens = cast(Tensor, model.nll), cast(Tensor, model.tokens)
    counted = tokens > 0
    documents = DocumentSums(nll[counted].tolist(), tokens[counted].tolist())
    if dense is None:
        return Losses(loss_of(model), by_document=documents)
    apart = model.minus(dense)
    difference = LossDifference(apart.value, apart.low, apart.high, int(counted.sum()))
    return Losses(loss_of(model), loss_of(dense), difference, documents)


def token_texts(tokenizer: PreTrainedTokenizerBase | None, ids: list[int]) -> list[str]:
    """The text of each id alone, with the leading space that SentencePiece drops; `#7` where there is no tokenizer."""
    if tokenizer is None:
        return [f"#{i}" for i in ids]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    texts = [str(tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]
    return [
        f" {text}" if (piece or "").startswith("▁") and not text.startswith(" ") else text
        for piece, text in zip(pieces, texts, strict=True)
    ]
