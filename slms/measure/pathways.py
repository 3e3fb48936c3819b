"""From a model and text to the numbers of a results file: one pass over the blocks, the same for training and eval.py.

Shapes: b blocks, t position, n tokens (b·t), p pathways, c classes.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from slms.data.text import Blocks
from slms.measure.passes import batches, token_nll
from slms.measure.schema import DocumentSums, Labels, Layer, Loss, LossDifference, Losses
from slms.metrics.functional import document_loss
from slms.metrics.loss import DocumentLoss
from slms.metrics.pathways import PathwayCounts
from slms.models.place import layer_of
from slms.models.routed import Routed, record_routes, routed_modules
from slms.report.describe import TOKEN, describe_labels, describe_layer
from slms.routing import Routes


class PathwayTables:
    """The count tables of every routed module, fed with the routes and the batch of a forward pass.

    Args:
        modules: the routed modules by place.
        token_ids: int64 [c], the distinct token ids that can occur; tables have a column for each, so they are those of
            the text measured and not of the whole vocabulary.
        label_names: family → class names.
        given_token: families whose SI is also computed conditional on the token; slow, for final measurements.
        alone: one rank counts everything by itself, instead of every rank its share.
    """

    def __init__(
        self,
        modules: Mapping[str, Routed],
        token_ids: Tensor,
        label_names: Mapping[str, tuple[str, ...]],
        given_token: tuple[str, ...] = (),
        alone: bool = False,
    ):
        self.token_ids, self.label_names = token_ids, dict(label_names)
        self._texts: list[str] = []
        self.offsets = {place: module.offsets for place, module in modules.items()}
        families = {TOKEN: len(token_ids)} | {family: len(names) for family, names in label_names.items()}
        self.counts = {
            place: PathwayCounts(module.config.n_pathways, families, given_token).to(next(module.parameters()).device)
            for place, module in modules.items()
        }
        if alone:
            for counts in self.counts.values():
                counts.distributed_available_fn = lambda: False

    def update(self, routes: Mapping[str, Routes], batch: Mapping[str, Tensor]) -> None:
        """Add the tokens of one batch: routes flattened [b·t], batch entries [b, t]."""
        ids = batch["input_ids"].flatten()
        column = torch.searchsorted(self.token_ids.to(ids.device), ids).clamp(max=len(self.token_ids) - 1)
        known = self.token_ids.to(ids.device)[column] == ids
        classes = {TOKEN: torch.where(known, column, -1)}
        classes |= {family: batch[f"labels_{family}"].flatten() for family in self.label_names}
        for place, counts in self.counts.items():
            counts.update(routes[place].chosen, classes, batch["doc_ids"].flatten())

    def reset(self) -> None:
        """Forget all tokens."""
        for counts in self.counts.values():
            counts.reset()

    def compute(self, tokenizer: PreTrainedTokenizerBase | None) -> list[Layer]:
        """Every layer as a results file holds it; under DDP over the tokens of all ranks, so every rank calls it."""
        self._texts = self._texts or token_texts(tokenizer, self.token_ids.tolist())
        layers = []
        for place, counts in self.counts.items():
            scores, layer = counts.compute(), layer_of(place)
            with counts.sync_context():
                layers.append(describe_layer(layer, counts, scores, self.offsets[place], self._texts, self.label_names))
        return layers


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
    device, was_training = next(model.parameters()).device, model.training
    token_ids = torch.from_numpy(blocks.input_ids.astype("int64")).unique()
    tables = PathwayTables(routed_modules(model), token_ids, blocks.label_names, given_token, alone=True)
    loss = DocumentLoss().to(device)
    model.eval()
    for batch in batches(blocks, batch_size):
        batch = {name: column.to(device) for name, column in batch.items()}
        with record_routes(model) as routes:
            nll = token_nll(model, batch["input_ids"])
        loss.update(nll.flatten(), batch["doc_ids"][:, 1:].flatten())
        tables.update(routes, batch)
    model.train(was_training)
    return Measurement(loss.cpu(), tables.compute(tokenizer), describe_labels(blocks))


def random_model(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A model of the same shape with random weights, routers included: the second null of every headline number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(model.config)
    return made.to(next(model.parameters()).device).eval()


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
