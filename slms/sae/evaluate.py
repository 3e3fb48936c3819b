"""Measures coders inside the language model: their reconstruction, and the loss when it replaces the activations.

As in training, every token is measured and its activation replaced, except special tokens and extreme activations.
The loss of a coder that writes to two models is the mean of the models' losses.

Shapes: b blocks, t position, n tokens (b·t), d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.models.head import Head, through_head
from slms.models.pair import Models, models_of
from slms.models.sites import Replace, Site, read_sites, replaced
from slms.models.token_loss import kl_of, nll_of
from slms.sae.quality import CoderQuality
from slms.sae.sparse import Picks


class Placed(Protocol):
    """A coder at its site in a model: one in training, one read from a directory, or a baseline."""

    source: Site
    target: Site
    mean: Tensor
    """Mean [o] of the target's activations, for mean ablation."""
    longest: Tensor
    """Tokens whose input has a larger norm than this are left alone."""

    def latents(self, x: Tensor) -> tuple[Picks, Tensor]:
        """Return the latents in use at inputs x [n, i], and their activations."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return ŷ [n, o]."""


class AtSource:
    """What a crosscoder does at one of its sites: its error there, and the loss with that site alone replaced."""

    def __init__(self, coder: Placed, part: int):
        """Look at the `part`-th site of a coder of several."""
        self.whole, self.part, self.n_parts = coder, part, len(coder.target.parts)
        self.source, self.target, self.longest = coder.source, coder.target.parts[part], coder.longest
        self.mean = coder.mean.chunk(self.n_parts)[part]

    def latents(self, x: Tensor) -> tuple[Picks, Tensor]:
        """Return the latents in use, which all sites share, and their activations."""
        return self.whole.latents(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return ŷ [n, d] of this site for x [n, i] of all."""
        return self.whole.reconstruct(x).chunk(self.n_parts, dim=1)[self.part]


class Used(NamedTuple):
    """The tokens of a batch that a coder was measured on, and the latents that it used there."""

    rows: Tensor
    """[n] bool, True at measured tokens; the rows of `picks` are these tokens, in order."""
    picks: Picks
    values: Tensor


def measured_tokens(ids: Tensor, x: Tensor, special: Tensor, longest: Tensor) -> Tensor:
    """Return [n] bool: which tokens of blocks [b, t] to measure, given inputs x [n, i]; a pathway's must choose it."""
    return (
        ~torch.isin(ids.flatten(), special.to(ids.device)) & (torch.linalg.vector_norm(x, dim=1) <= longest) & x.any(1)
    )


@torch.no_grad()
def update_qualities(
    lm: Models,
    batch: dict[str, Tensor],
    coders: Sequence[Placed],
    special: Tensor,
    qualities: Sequence[CoderQuality],
    full: bool = False,
) -> list[Used]:
    """Add one batch to each coder's quality. Whatever does not depend on the coder is computed only once.

    Args:
        lm: the model, or the two that crosscoders read.
        batch: `input_ids` and `doc_ids` [b, t].
        coders: the coders to measure.
        special: token ids that are left alone.
        qualities: the sums, one object per coder.
        full: also ablate to the mean and measure KL; otherwise those figures are NaN or 0 and mean nothing.
    """
    ids, docs = batch["input_ids"], batch["doc_ids"]
    found = read_sites(lm, ids, list(dict.fromkeys(site for coder in coders for site in (coder.source, coder.target))))
    clean = {of: _last_hidden(net, ids) for of, net in models_of(lm).items()}
    ce_clean = {of: _nll(last, ids) for of, last in clean.items()}
    constant = _Constant(lm, ids)
    out = []
    for coder, quality in zip(coders, qualities, strict=True):
        x, y = found[coder.source.name], found[coder.target.name]
        rows = measured_tokens(ids, x, special, coder.longest)
        picks, values = coder.latents(x[rows])
        quality.update(y[rows], coder.reconstruct(x[rows]), picks, values, docs.flatten()[rows])
        with _patched(lm, coder.target, rows, coder.reconstruct(x)):
            patched = _written(lm, coder.target, ids)
        nats = {"ce_clean": _mean([ce_clean[of] for of in patched]), "ce": _mean_nll(patched, ids)}
        nats["ce_zero"] = constant.nll(coder.target, rows, torch.zeros_like(coder.mean))
        if full:
            nats["ce_mean"] = constant.nll(coder.target, rows, coder.mean)
            nats["kl"] = _mean([kl_of(*last, clean[of]).flatten() for of, last in patched.items()])
        quality.update_losses(docs[:, 1:].flatten(), **nats)
        out.append(Used(rows, picks, values))
    return out


class _Constant:
    """Computes, once for each site, the loss with a constant in place of its activations."""

    def __init__(self, lm: Models, ids: Tensor):
        self.lm, self.ids = lm, ids
        self.known: list[tuple[Site, Tensor, Tensor, Tensor]] = []

    def nll(self, site: Site, rows: Tensor, value: Tensor) -> Tensor:
        for known_site, known_rows, known_value, nats in self.known:
            if known_site == site and torch.equal(known_rows, rows) and torch.equal(known_value, value):
                return nats
        with _patched(self.lm, site, rows, value.expand(len(rows), -1)):
            nats = _mean_nll(_written(self.lm, site, self.ids), self.ids)
        self.known.append((site, rows, value, nats))
        return nats


@contextmanager
def _patched(lm: Models, target: Site, rows: Tensor, new: Tensor) -> Iterator[None]:
    """While open, activations at `target`, or at all its parts, are `new` [n, o] at `rows` and unchanged elsewhere."""
    parts = target.parts or (target,)
    with ExitStack() as stack:
        for part, value in zip(parts, new.chunk(len(parts), dim=1), strict=True):
            stack.enter_context(replaced(lm, part, part, _within(rows, value)))
        yield


def _within(rows: Tensor, new: Tensor) -> Replace:
    return lambda x, y: torch.where(rows[:, None], new.to(y.dtype), y)


def _written(lm: Models, target: Site, ids: Tensor) -> dict[str, tuple[Tensor, Head]]:
    """Return, by name, what `_last_hidden` gives of each model that has a part of the target."""
    owners = {part.of for part in target.parts or (target,)}
    return {of: _last_hidden(net, ids) for of, net in models_of(lm).items() if of in owners}


def _mean_nll(last: Mapping[str, tuple[Tensor, Head]], ids: Tensor) -> Tensor:
    return _mean([_nll(one, ids) for one in last.values()])


def _mean(of_models: Sequence[Tensor]) -> Tensor:
    return of_models[0] if len(of_models) == 1 else torch.stack(list(of_models)).mean(0)


def _last_hidden(lm: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Head]:
    """Return the hidden states [b, t − 1, d] from which the head predicts each next token, and the head."""
    return through_head(lm, ids, lambda hidden, head: (hidden[:, :-1], head))


def _nll(last: tuple[Tensor, Head], ids: Tensor) -> Tensor:
    """Return the loss [b·(t − 1)] of each next token, in nats."""
    return nll_of(*last, ids[:, 1:]).flatten()
