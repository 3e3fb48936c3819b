"""Labels every token with classes, from the embedded corpus's own labels or, for other text, from its lexicon.

The families are `token_class` (the kind of token), `frequency` (fifths of the corpus's mass), `pos`, `semantic`, and,
for the embedded corpus, `number`. `domain` is the plot of an embedded story, or what a row of the text names. −1 marks
a token of unknown class; `coverage`, the share of known tokens, stands beside every number computed from them.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from slms.data.stories import LEXICON, NUMBER, PLOTS, POS, SEMANTIC

VERSION = 2  # part of the cache's key; raise it when a label changes
TOKEN_CLASSES = ("special", "space", "punctuation", "digit", "function", "content", "capitalised", "piece")
FREQUENCY_BINS = ("top fifth", "second fifth", "middle fifth", "fourth fifth", "rarest fifth")
MOST_DOMAINS = 64
"""Domains of a text that are told apart; documents of further ones have none."""
WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)?|\d+|[^\sA-Za-z\d]")

_FUNCTION_WORDS = frozenset(
    "a an the this that these those my your his her its our their some any no every each all both i you he she it we "
    "they me him us them who what which where when why how to of in on at by for with from into over under near "
    "behind and or but so if because as than then not is are was were be been am do does did has have had will would "
    "can could shall should may might must there here up down out off".split()
)


class Labeller:
    """Labels the tokens of documents under one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.token_class = token_classes(tokenizer)
        self.annotated: bool | None = None
        self.domains: list[str] = []

    def __call__(self, document, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
        """Return the classes of one document's tokens, family → [t] int16.

        Args:
            document: a `slms.data.corpora.Document`; the labels of its words are used if it has them.
            ids: token ids [t], including the separator.
            spans: character span of each token, [t]; an empty span marks a separator.
        """
        self.annotated = document.words is not None
        words = document.words if self.annotated else _lexicon_words(document.text)
        starts = np.asarray([w[0] for w in words], dtype=np.int64)
        ends = np.asarray([w[1] for w in words], dtype=np.int64)
        word_of = _word_of_token(document.text, spans, starts, ends)
        out = {"token_class": self.token_class[np.asarray(ids)]}
        for family, column, names in self._word_families(words):
            index = {name: i for i, name in enumerate(names)}
            classes = np.asarray([index.get(value, -1) for value in column] + [-1], dtype=np.int16)
            out[family] = classes[word_of]
        out["domain"] = np.where(word_of >= 0, np.int16(self._domain(document.domain)), np.int16(-1))
        return out

    def _domain(self, name: str | None) -> int:
        if self.annotated:
            return PLOTS.index(name)
        if name is not None and name not in self.domains and len(self.domains) < MOST_DOMAINS:
            self.domains.append(name)
        return self.domains.index(name) if name in self.domains else -1

    def _word_families(self, words):
        if self.annotated:
            yield "pos", [w.pos for w in words], POS
            yield "semantic", [w.semantic for w in words], SEMANTIC
            yield "number", [w.number for w in words], NUMBER
        else:
            yield "pos", [w[2] for w in words], POS
            yield "semantic", [w[3] for w in words], SEMANTIC

    def names(self) -> dict[str, tuple[str, ...]]:
        """Return the class names of every family that `__call__` has returned; without a domain, it is none."""
        families = {"token_class": TOKEN_CLASSES, "pos": tuple(POS), "semantic": tuple(SEMANTIC)}
        if self.annotated:
            families |= {"number": tuple(NUMBER), "domain": tuple(PLOTS)}
        if self.domains:
            families["domain"] = tuple(self.domains)
        return families


def _lexicon_words(text: str) -> list[tuple[int, int, str | None, str | None]]:
    unknown = (None, None)
    return [(m.start(), m.end(), *LEXICON.get(m.group().lower(), unknown)) for m in WORD.finditer(text)]


def _word_of_token(text: str, spans, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the index [t] of the word that holds each token's first character other than a space; −1 for none."""
    first = np.asarray(
        [s + (len(piece) - len(piece.lstrip())) if (piece := text[s:e]).strip() else -1 for s, e in spans],
        dtype=np.int64,
    )
    if not len(starts):
        return np.full(len(first), -1)
    word = np.searchsorted(starts, first, side="right") - 1
    return np.where((first >= 0) & (word >= 0) & (first < ends[word]), word, -1)


def token_classes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return, from its text alone, each vocabulary id's index into `TOKEN_CLASSES`, [v].

    `piece` is a run of letters that does not begin a word, because it lacks the leading space of a word's first token.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    out = np.zeros(len(tokenizer), dtype=np.int16)
    for i, raw in enumerate(pieces):
        if i not in special:
            out[i] = TOKEN_CLASSES.index(_token_class(raw))
    return out


def _token_class(raw: str | None) -> str:
    if raw is None or re.fullmatch(r"<0x[0-9A-F]{2}>", raw):
        return "piece"
    begins = raw[:1] in ("Ġ", "▁", " ")
    word = re.sub(r"^[Ġ▁Ċčĉ ]+", "", raw)
    if not word:
        return "space"
    if word.isdigit():
        return "digit"
    if not any(ch.isalpha() for ch in word):
        return "punctuation" if all(unicodedata.category(ch)[0] in "PSN" for ch in word) else "piece"
    if word[0].isupper():
        return "function" if word.lower() in _FUNCTION_WORDS else "capitalised"
    if word.lower() in _FUNCTION_WORDS:
        return "function"
    return "content" if begins else "piece"


def frequency_bins(input_ids: np.ndarray) -> np.ndarray:
    """Return the fifth of the text's mass that each token belongs to, from the most frequent down; same shape."""
    counts = np.bincount(input_ids.ravel())
    order = np.argsort(-counts, kind="stable")
    below = np.cumsum(counts[order]) - counts[order]
    fifth = np.empty(len(counts), dtype=np.int16)
    fifth[order] = np.minimum(5 * below // max(counts.sum(), 1), 4)
    return fifth[input_ids]
