"""Compares the log-probabilities that a language model gives to answer and foil of probe items.

Shapes: i items, s sequences, b sequences of a batch, t position, v vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slms.data.probe_tasks import Item, Task
from slms.measure.rows import MODEL, Row, row_of
from slms.metrics.functional.intervals import proportion
from slms.models.head import Head, through_head
from slms.models.token_loss import nll_of

CHANCE = 0.5  # answer or foil


class Margins(NamedTuple):
    """How far a model prefers each answer; NaN for an item that cannot be scored (see `margins`)."""

    nats: Tensor
    """float64 [i], log p(answer | prompt) − log p(foil | prompt)"""
    blind: Tensor
    """float64 [i], the same without the prompt, which shows what the words alone give away"""
    truncated: Tensor
    """bool [i], whether the model's context was too short for the whole prompt"""


class _Scored(NamedTuple):
    ids: list[int]
    start: int
    """position of the first token whose log-probability counts"""
    truncated: bool


def margins(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> Margins:
    """How much more probable the answer is than the foil, in nats.

    Σ_t log p(x_t | x_<t) over prompt + answer, minus that over prompt + foil: summed, not averaged over tokens (as
    BLiMP, arXiv 1912.00582, section 4.1). Tokens that the two share at their beginning cancel and are left out, so the
    result does not depend on where the tokenizer puts the border between prompt and answer. If the tokenizer has a
    separator of documents, every text follows it, as in training. A prompt that is longer than the model's context
    loses its beginning.

    An item is NaN if its answer does not fit the context, if the two texts have the same tokens, or if they differ
    from the very first token and there is no separator to predict it from.

    Args:
        items: items with answer and foil.
        batch_size: sequences in one forward pass.
        progress: called with the number of sequences just done.
    """
    limit = getattr(model.config, "max_position_embeddings", None) or 10**9
    pairs = [_pair(tokenizer, item.prompt, item, limit) for item in items]
    blind = [_pair(tokenizer, "", item, limit) if item.prompt else None for item in items]
    sequences = [sequence for pair in pairs + blind if pair for sequence in pair]
    totals = iter(log_probs(model, sequences, batch_size, progress).tolist())
    nats, unprompted = (
        torch.tensor([next(totals) - next(totals) if pair else torch.nan for pair in group], dtype=torch.float64)
        for group in (pairs, blind)
    )
    return Margins(nats, unprompted, torch.tensor([pair is not None and pair[0].truncated for pair in pairs]))


def n_forwards(items: Sequence[Item]) -> int:
    """The most sequences that `margins` reads for these items, for a progress bar."""
    return sum(4 if item.prompt else 2 for item in items)


def _pair(tokenizer: PreTrainedTokenizerBase, prompt: str, item: Item, limit: int) -> tuple[_Scored, _Scored] | None:
    """The tokens of prompt + answer and prompt + foil, scored from where they differ; None if that is impossible."""
    right, wrong = (_encode(tokenizer, prompt + (tail or "")) for tail in (item.answer, item.foil))
    start = next((i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b), min(len(right), len(wrong)))
    cut = max(0, max(len(right), len(wrong)) - 1 - limit)  # the last token is predicted, not read
    if start - cut < 1 or right == wrong:
        return None
    scored = [_Scored(ids[cut:], start - cut, cut > 0) for ids in (right, wrong)]
    return scored[0], scored[1]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = list(tokenizer(text, verbose=False).input_ids)
    separator = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return ids if separator is None or ids[:1] == [separator] else [separator, *ids]


@torch.inference_mode()
def log_probs(
    model: PreTrainedModel,
    sequences: Sequence[_Scored],
    batch_size: int,
    progress: Callable[[int], object] = lambda done: None,
) -> Tensor:
    """Σ_{j ≥ start} log p(ids_j | ids_<j) of each sequence: float64 [s].

    Sequences that differ only in their last token, as most answers and foils do, share one forward pass. Padding is at
    the right, where no scored token of a causal model sees it.
    """
    device, was_training = next(model.parameters()).device, model.training
    readers: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        readers.setdefault(tuple(sequence.ids[:-1]), []).append(index)
    inputs = sorted(readers, key=len)
    totals = torch.zeros(len(sequences), dtype=torch.float64)
    model.eval()
    for first in range(0, len(inputs), batch_size):
        batch = inputs[first : first + batch_size]
        padded = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.int64)
        for row, ids in enumerate(batch):
            padded[row, : len(ids)] = torch.tensor(ids)
        scored = [
            (index, row, at, token)
            for row, ids in enumerate(batch)
            for index in readers[ids]
            for at, token in enumerate(sequences[index].ids[sequences[index].start :], sequences[index].start - 1)
        ]
        index, row, at, token = torch.tensor(scored, dtype=torch.int64).view(-1, 4).T

        def loss(x: Tensor, head: Head, i: Tensor = row, j: Tensor = at, of: Tensor = token) -> Tensor:
            return nll_of(x[i, j], head, of.to(device))

        totals.index_add_(0, index, -through_head(model, padded.to(device), loss).cpu().double())
        progress(sum(len(readers[ids]) for ids in batch))
    model.train(was_training)
    return totals


def probe_rows(task: Task, found: Margins) -> list[Row]:
    """The rows of one task, from the margins of its answered items, with Wilson's intervals over items."""
    accuracy, blind = (proportion(_hits(nats)) for nats in (found.nats, found.blind))
    left_out = found.nats.isnan()
    counts = {"truncated": found.truncated.sum(), "left_out": left_out.sum()}
    numbers = {"accuracy": accuracy, "blind": blind, "margin": found.nats[~left_out].mean()} | counts
    rows = [row_of(MODEL, metric, task.task_id, number, accuracy.n) for metric, number in numbers.items()]
    return [replace(row, null_mean=CHANCE) if row.metric in ("accuracy", "blind") else row for row in rows]


def _hits(margins: Tensor) -> Tensor:
    margins = margins[~margins.isnan()]
    return (margins > 0).double() + 0.5 * (margins == 0)
