"""The classes by which a text's tokens are counted: its label families, the same given the token, and the tokens.

Shapes: b blocks, t position, n tokens (b·t), c classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from slms.data.text import Blocks
from slms.measure.schema import Labels
from slms.metrics.units import Cells, CountLayout, Family, ambiguous_tokens

TOKEN = "token"  # the family of token ids, beside the label families
MOST_BY_CLASS = 256
"""Pathways of a place up to which they are counted by class. Finer units, as single neurons, are counted by load alone:
a table by token id has 16 · units · distinct tokens numbers, and `eval.py specialization` measures neurons anyway."""
GIVEN_TOKEN = " | token"  # suffix of the name of a family that is conditional on the token
OF_DOCUMENTS = ("domain", "task")  # families whose class is that of the whole document


def check_families(blocks: Blocks, **flags: Sequence[str] | None) -> None:
    """Raise ValueError, naming the flag, if it asks for a label family that the text does not have."""
    for flag, wanted in flags.items():
        if unknown := [family for family in wanted or () if family not in blocks.label_names]:
            known = ", ".join(blocks.label_names)
            raise ValueError(f"--{flag} {unknown[0]}: this text has no such labels; it has {known}")


class TextClasses:
    """The classes by which the tokens of labelled blocks are counted, the same for every place.

    Args:
        blocks: the text.
        families: label families of the text to count; None means all.
        given_token: families also counted conditional on the token, I(U; C | token), over the 32 tokens whose class
            varies most. A family is left out if each of its tokens has only one class, which the token then tells.
        tokens: whether the token ids themselves form a family, `token`, with a class for each id that occurs.

    Raises:
        ValueError: the text has no labels of a family.
    """

    def __init__(
        self,
        blocks: Blocks,
        families: Sequence[str] | None = None,
        given_token: Sequence[str] = (),
        tokens: bool = False,
    ):
        names = list(blocks.label_names if families is None else families)
        check_families(blocks, families=names, given_token=given_token)
        self.label_names = {name: blocks.label_names[name] for name in names}
        self.token_ids = torch.from_numpy(np.unique(blocks.input_ids).astype("int64")) if tokens else None
        self.coverage: dict[str, float] = {}
        """for each family, the share of tokens with a known class; for a conditional one, of n·H(C | token)"""
        real = blocks.input_ids >= 0 if blocks.doc_ids is None else blocks.doc_ids >= 0
        ids = torch.from_numpy(blocks.input_ids[real])
        counted = {} if self.token_ids is None else {TOKEN: Family(len(self.token_ids))}
        for name in names:
            counted[name] = Family(len(blocks.label_names[name]), name in OF_DOCUMENTS)
            self.coverage[name] = float((blocks.labels[name][real] >= 0).mean())
        for name in given_token:
            n, classes = len(blocks.label_names[name]), torch.from_numpy(blocks.labels[name][real])
            strata, share = ambiguous_tokens(ids, classes, n, int(blocks.input_ids.max()) + 1)
            if int(strata.max()) >= 0:
                counted[name + GIVEN_TOKEN] = Family(n, name in OF_DOCUMENTS, strata)
                self.coverage[name + GIVEN_TOKEN] = share
        self.layout = CountLayout(counted)

    def cells(self, batch: Mapping[str, Tensor], kept: Tensor | None = None) -> Cells:
        """The cells in which the tokens of a batch [b, t] count.

        Args:
            batch: `input_ids`, `doc_ids` and `labels_<family>`.
            kept: bool [n], False at tokens that do not count; padding, with documents below 0, never counts.
        """
        ids, documents = batch["input_ids"].flatten(), batch["doc_ids"].flatten()
        classes = {
            name: batch[f"labels_{name.removesuffix(GIVEN_TOKEN)}"].flatten()
            for name in self.layout.families
            if name != TOKEN
        }
        if self.token_ids is not None:
            known = self.token_ids.to(ids.device)
            column = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
            classes = {TOKEN: torch.where(known[column] == ids, column, -1)} | classes
        return self.layout.cells(ids, classes, documents, kept)


def labels_of(blocks: Blocks) -> dict[str, Labels]:
    """The coverage and class shares of every label family."""
    found = {}
    for family, names in blocks.label_names.items():
        classes = torch.from_numpy(blocks.labels[family].astype("int64")).flatten()
        counts = torch.bincount(classes[classes >= 0], minlength=len(names)).double()
        share = counts / counts.sum().clamp(min=1)
        found[family] = Labels(float((classes >= 0).double().mean()), dict(zip(names, share.tolist(), strict=True)))
    return found


class Divergence(NamedTuple):
    """How each class sets a unit's tokens apart; the shapes are those of the counts."""

    share: Tensor
    """p(c | unit); 0 for a unit that is never on"""
    lift: Tensor
    """p(c | unit) / p(c); 0 for a class never seen"""
    gain: Tensor
    """the class's term of KL(p(c | unit) ‖ p(c)), nats; high if it is common here, and more so than elsewhere"""


def divergence_terms(counts: Tensor, totals: Tensor) -> Divergence:
    """The terms of KL(p(c | unit) ‖ p(c)) from counts [(u,) c], how often a unit is on in a class, and totals [c]."""
    here = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    overall = totals / totals.sum().clamp(min=1)
    lift = torch.where(counts > 0, here / overall.clamp(min=1e-300), 0.0)
    return Divergence(here, lift, torch.special.xlogy(here, lift))


def preferred_classes(counts: Tensor, totals: Tensor) -> Tensor:
    """The class [u] with each unit's largest term of the KL, neither the commonest nor the rarest; −1 if never on.

    Args:
        counts: [u, c], totals: [c], as in `divergence_terms`.
    """
    counts = counts.double()
    return torch.where(counts.sum(1) > 0, divergence_terms(counts, totals.double()).gain.argmax(1), -1)


def distinctive(counts: Tensor, totals: Tensor, most: int) -> list[int]:
    """At most `most` classes that set a unit (counts [c]) apart from all tokens (totals [c]), the clearest first."""
    gain = divergence_terms(counts, totals).gain
    return [i for i in gain.argsort(descending=True, stable=True)[:most].tolist() if gain[i] > 0]


def preferred_class(profile: Mapping[str, float], share: Mapping[str, float]) -> str | None:
    """The preferred class of a unit by name, from its shares p(class | unit) and those of all tokens; None without any.

    >>> preferred_class({"noun": 0.6, "verb": 0.4}, share={"noun": 0.7, "verb": 0.3})
    'verb'
    """
    names = [name for name, p in profile.items() if p > 0 and share.get(name, 0) > 0]
    if not names:
        return None
    here, overall = torch.tensor([[shares[name] for name in names] for shares in (profile, share)], dtype=torch.float64)
    return names[int(preferred_classes(here[None], overall)[0])]


def token_texts(tokenizer: PreTrainedTokenizerBase | None, ids: list[int]) -> list[str]:
    """The text of each id by itself, with the leading space that SentencePiece drops; `#7` if there is no tokenizer."""
    if tokenizer is None:
        return [f"#{i}" for i in ids]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    texts = [str(tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]
    return [
        f" {text}" if (piece or "").startswith("▁") and not text.startswith(" ") else text
        for piece, text in zip(pieces, texts, strict=True)
    ]
