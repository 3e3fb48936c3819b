"""Sums each document's loss, for a perplexity with an interval over documents. Shapes: n tokens, d document slots."""

import torch
from torch import Tensor

from slms.metrics.functional import Interval, document_loss, paired_difference
from slms.metrics.states import Sums


class DocumentLoss(Sums):
    """Sums the negative log-likelihood and counts the tokens of each document; exact under DDP.

    Memory is constant, because document i goes to slot i modulo `n_slots`. Up to `n_slots` documents with consecutive
    ids have a slot each; with more, a slot is a fixed group of documents, and the bootstrap over groups is as valid.
    """

    nll: Tensor
    """float64 [d], summed nats"""
    tokens: Tensor
    """int64 [d], number of predicted tokens"""

    def __init__(self, n_slots: int = 4096) -> None:
        super().__init__()
        self.n_slots = n_slots
        self.add_state("nll", torch.zeros(n_slots, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(n_slots, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, doc_ids: Tensor, mask: Tensor | None = None) -> None:
        """Add the nats `nll` [n] of the predicted tokens, in documents `doc_ids` [n], at which `mask` [n] is True."""
        if mask is not None:
            nll, doc_ids = nll[mask], doc_ids[mask]
        slot = doc_ids % self.n_slots
        self.nll.index_add_(0, slot, nll.double())
        self.tokens.index_add_(0, slot, torch.ones_like(slot))

    def compute(self) -> Interval:
        """Nats per token with the 95 % interval; exp of both gives the perplexity's."""
        return document_loss(self.nll, self.tokens)

    def minus(self, other: "DocumentLoss") -> Interval:
        """This model's nats per token minus another's on the same documents, bootstrapped in pairs."""
        if not torch.equal(self.tokens.cpu(), other.tokens.cpu()):
            raise ValueError("the two losses count different tokens; a paired difference needs the same documents.")
        return paired_difference(self.nll, other.nll, self.tokens)
