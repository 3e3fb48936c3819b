"""Losses of a causal language model over token blocks: the one place where training and evaluation take them from.

Shapes: `b` blocks, `t` position, `v` vocabulary.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader

from slms.data.module import BlockDataset
from slms.data.text import Blocks
from slms.measure.journal import Journal
from slms.metrics.loss import DocumentLoss


def token_nll(net: nn.Module, input_ids: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each next token: [b, t − 1] fp32, from input_ids [b, t]."""
    logits = net(input_ids, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(rearrange(logits, "b t v -> b v t"), input_ids[:, 1:], reduction="none")


def batches(blocks: Blocks, batch_size: int) -> DataLoader:
    """The blocks in order as dicts of tensors [b, t]."""
    rows = [
        list(range(i, min(i + batch_size, len(blocks.input_ids)))) for i in range(0, len(blocks.input_ids), batch_size)
    ]
    return DataLoader(BlockDataset(blocks), sampler=rows, batch_size=None)


@torch.inference_mode()
def document_loss(net: nn.Module, blocks: Blocks, batch_size: int, journal: Journal | None = None) -> DocumentLoss:
    """Losses of `net` on all blocks by document; a token's document is that of the predicted token.

    journal: of this model and these blocks; a pass that was killed goes on from what it kept.
    """
    loss = DocumentLoss()
    was_training, device = net.training, next(net.parameters()).device
    net.eval()
    read = (journal or Journal()).through("loss", batches(blocks, batch_size), [loss], "reading", batch_size=batch_size)
    for batch in read:
        nll = token_nll(net, batch["input_ids"].to(device)).cpu()
        loss.update(nll.flatten(), batch["doc_ids"][:, 1:].flatten())
    net.train(was_training)
    return loss
