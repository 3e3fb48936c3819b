"""Measures the corpus: entropy, repetition, word types."""

import math
from collections import Counter
from typing import NamedTuple
from zlib import adler32, crc32

from slms.data.stories.plots import story


class Entropy(NamedTuple):
    """The corpus's entropy estimate: nats per word (not counting marks) and its standard error over stories."""

    nats_per_word: float
    standard_error: float
    words_per_story: float


def entropy_per_word(n_stories: int = 1000, seed: int = 0, split: str = "train") -> Entropy:
    """Estimate the derivations' nats per word, Σ nats / Σ words over stories, an upper bound of the text's entropy.

    The delta method for a ratio of means gives the standard error.
    """
    nats, words = [], []
    for index in range(n_stories):
        s = story(seed, index, split)
        nats.append(s.nats)
        words.append(s.n_words)
    mean = sum(words) / n_stories
    ratio = sum(nats) / sum(words)
    variance = sum((x - ratio * w) ** 2 for x, w in zip(nats, words, strict=True)) / max(n_stories - 1, 1)
    return Entropy(ratio, math.sqrt(variance / n_stories) / mean, mean)


def runs(text: str, length: int) -> list[int]:
    """Return a 64-bit key of every run of `length` words."""
    words = text.split()
    keys = []
    for i in range(len(words) - length + 1):
        run = " ".join(words[i : i + length]).encode()
        keys.append(crc32(run) << 32 | adler32(run))
    return keys


def repetition_share(
    n_fresh: int = 200,
    n_others: int = 10_000,
    length: int = 20,
    seed: int = 0,
    split: str = "train",
    fresh_split: str = "train",
) -> float:
    """Return the share of the fresh stories' runs of `length` words that occur in `n_others` other stories.

    The others are stories 0 to `n_others` of `split`; the fresh ones are the next `n_fresh` indices of `fresh_split`.
    Runs are compared as printed, with marks attached and paragraphs ignored.
    """
    fresh = [runs(story(seed, n_others + i, fresh_split).text, length) for i in range(n_fresh)]
    wanted = {key for keys in fresh for key in keys}
    seen = set()
    for index in range(n_others):
        seen.update(wanted.intersection(runs(story(seed, index, split).text, length)))
    total = sum(len(keys) for keys in fresh)
    return sum(key in seen for keys in fresh for key in keys) / total


def word_counts(n_stories: int = 10_000, seed: int = 0, split: str = "train") -> Counter[str]:
    """Count how often each lower-case word occurs, not counting marks."""
    counts: Counter[str] = Counter()
    for index in range(n_stories):
        counts.update(w.text.lower() for w in story(seed, index, split).words if w.pos != "punct")
    return counts
