"""Computes the losses of a causal language model over token blocks, for training and evaluation alike.

Shapes: `b` blocks, `t` position, `v` vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from slms.data.module import BlockDataset
from slms.data.text import Blocks
from slms.measure.journal import Journal
from slms.metrics.loss import DocumentLoss
from slms.models.head import Head, separates, through_head
from slms.models.token_loss import kl_of, nll_of

_HEAD_TOKENS = 1024  # whose logits are held at a time


class TokenNats(NamedTuple):
    """Losses of each next token, in nats, [b, t − 1] fp32."""

    nll: Tensor
    kl: Tensor | None
    """KL(base ‖ model), if there is a base"""


@torch.no_grad()
def token_nats(net: PreTrainedModel, input_ids: Tensor, base: PreTrainedModel | None = None) -> TokenNats:
    """Compute each next token's −ln p and, if there is a base, KL(base ‖ model), from input_ids [b, t]."""
    if base is None:
        return TokenNats(token_nll(net, input_ids), None)

    def of(theirs: Tensor, head: Head) -> TokenNats:
        teacher = theirs[:, :-1], head
        return through_head(
            net,
            input_ids,
            lambda x, head: TokenNats(nll_of(x[:, :-1], head, input_ids[:, 1:]), kl_of(x[:, :-1], head, teacher)),
        )

    return through_head(base, input_ids, of)


@torch.no_grad()
def token_nll(net: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """The negative log-likelihood in nats of each next token, [b, t − 1] fp32, from input_ids [b, t]."""
    return through_head(net, input_ids, lambda hidden, head: nll_of(hidden[:, :-1], head, input_ids[:, 1:]))


def batches(blocks: Blocks, batch_size: int) -> DataLoader:
    """Load the blocks in order, as dicts of tensors [b, t]."""
    rows = [
        list(range(i, min(i + batch_size, len(blocks.input_ids)))) for i in range(0, len(blocks.input_ids), batch_size)
    ]
    return DataLoader(BlockDataset(blocks), sampler=rows, batch_size=None)


@torch.no_grad()
def predicted_tokens(net: PreTrainedModel, blocks: Blocks, batch_size: int) -> Tensor:
    """The token that the model finds most probable after each token of the blocks, int64 [n], padding left out."""

    def best(hidden: Tensor, head: Head) -> Tensor:
        found = []
        for part in hidden.flatten(0, 1).split(_HEAD_TOKENS):
            width = part.shape[-1] if head.weight is None else head.weight.shape[0]
            out = torch.empty(len(part), width, device=part.device, dtype=torch.promote_types(part.dtype, torch.float))
            found.append(head.cast(part).logits(part, out).argmax(-1))
        return torch.cat(found)

    device, found = next(net.parameters()).device, []
    for batch in batches(blocks, batch_size):
        real = (batch["doc_ids"].flatten() >= 0).to(device)
        found.append(through_head(net, batch["input_ids"].to(device), best)[real])
    return torch.cat(found)


@torch.inference_mode()
def document_loss(
    net: PreTrainedModel, blocks: Blocks, batch_size: int, journal: Journal | None = None
) -> DocumentLoss:
    """Sum the losses of `net` on all blocks by document; a loss belongs to the document of the predicted token.

    journal: journal of this model and these blocks, from which a killed pass continues. A model that always computes
    logits (`through_head`) reads one block at a time.
    """
    loss = DocumentLoss()
    was_training, device = net.training, next(net.parameters()).device
    net.eval()
    batch_size = batch_size if separates(net) else 1
    read = (journal or Journal()).through("loss", batches(blocks, batch_size), [loss], "reading", batch_size=batch_size)
    for batch in read:
        nll = token_nll(net, batch["input_ids"].to(device)).cpu()
        loss.update(nll.flatten(), batch["doc_ids"][:, 1:].flatten())
    net.train(was_training)
    return loss
