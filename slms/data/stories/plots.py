"""Tells any story by its index: draws a plot, binds its cast, tells the opening, checks the split, tells the rest.

The splits are disjoint by construction. A story's printed first paragraph decides its split (crc32 modulo 10: 0-7 is
train, 8 validation, 9 test); a first paragraph that belongs to another split is thrown away with its cast. So stories
of different splits never share a first paragraph and are never equal. Later phrases may recur, as rarely as between
two stories of one split.
"""

import math
from functools import cache
from zlib import crc32

from slms.data.stories.engine import Teller, Word, finish
from slms.data.stories.lines import HERE, TextError, read
from slms.data.stories.script import Reader, Step, moves, run
from slms.data.stories.template import ARTICLE, WORD, Piece

FILES = {path.stem.lstrip("0123456789_"): f"plots/{path.name}" for path in sorted((HERE / "plots").glob("*.txt"))}
PLOTS = tuple(FILES)
SPLITS = ("train", "validation", "test")
SPLIT_OF_BUCKET = ("train",) * 8 + ("validation", "test")


class Story:
    """One story, with its text and, on demand, its labelled words.

    `nats` is −log p of the derivation under the grammar before the split is imposed, which is the sum of −log p(choice)
    over all random choices and an upper bound of −log p(text). `phenomena` lists the kinds that occur.
    """

    __slots__ = ("_parts", "_pieces", "nats", "phenomena", "plot", "text")

    def __init__(self, plot: str, teller: Teller):
        self.plot = plot
        self.nats = teller.nats
        self.phenomena = tuple(sorted(teller.phenomena))
        self._parts, self._pieces = finish(teller.out)
        self.text = "".join(self._parts)

    @property
    def words(self) -> list[Word]:
        """The labelled words and marks, in order."""
        words, end = [], 0
        for part, p in zip(self._parts, self._pieces, strict=True):
            text = part.lstrip()
            end += len(part)
            words.append(Word(end - len(text), end, text, p.pos, p.semantic, p.referent, p.number))
        return words

    @property
    def n_words(self) -> int:
        """The number of words, not counting marks."""
        return sum(p[0] == WORD or p[0] == ARTICLE for p in self._pieces)


@cache
def plot_of(name: str) -> tuple[list[Step], list[Step]]:
    """Return the steps of a plot: those above its first paragraph, which cast and open the story, and the rest."""
    steps = Reader(FILES[name], moves()).steps(read(FILES[name]))
    acts = [step.act for step in steps]
    if Teller.paragraph not in acts:
        raise TextError(f"{FILES[name]}: a plot must have a `paragraph` below its opening")
    opening = acts.index(Teller.paragraph)
    return steps[:opening], steps[opening:]


def split_of(first_paragraph: list[Piece]) -> str:
    """Return the split to which a first paragraph belongs."""
    return SPLIT_OF_BUCKET[crc32("".join(finish(first_paragraph)[0]).encode()) % 10]


def story(seed: int, index: int, split: str = "train") -> Story:
    """Tell story `index` of stream `seed` in a split; the same arguments give the same story everywhere.

    >>> story(0, 3).text == story(0, 3).text != story(0, 4).text
    True
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}.")
    t = Teller(f"{seed}/{index}/{split}")
    while True:
        t.begin()
        t.nats += math.log(len(PLOTS))
        plot = PLOTS[int(t.random() * len(PLOTS))]
        opening, rest = plot_of(plot)
        run(opening, t)
        if not t.out:
            raise TextError(
                f"{FILES[plot]}: nothing is told above the first `paragraph`; it must be, by `opening` or sentences"
            )
        if split_of(t.out) == split:
            break
    run(rest, t)
    return Story(plot, t)
