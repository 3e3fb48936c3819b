"""The story engine, which tells templates with one random number per choice, then sets capitals, spaces, articles."""

import math
import random
from typing import NamedTuple

from slms.data.stories.template import (
    ARTICLE,
    BEGIN,
    BREAK,
    CHOICE,
    CLOSE,
    COMMA,
    LITERAL,
    OPEN,
    PARAGRAPH,
    SLOT,
    STOP,
    WORD,
    Piece,
    compile_template,
)

LOG = [0.0] + [math.log(n) for n in range(1, 400)]


class Word(NamedTuple):
    """A labelled word of a story; `text[start:end]` of the story is `text`."""

    start: int
    end: int
    text: str
    pos: str
    semantic: str
    referent: int
    number: str


class Teller:
    """A story being told, with its random source, the binding of each key, the pieces so far, and its cost in nats."""

    def __init__(self, seed: str):
        self.random = random.Random(seed).random
        self.begin()

    def begin(self) -> None:
        """Forget everything told so far, but keep the position in the random stream."""
        self.out: list[Piece] = []
        self.bound: dict[str, tuple[Piece, ...]] = {}
        self.nats = 0.0
        self.phenomena: set[str] = set()
        self.referents = 0
        self.used: set = set()
        self.state: dict = {}

    def index(self, n: int) -> int:
        """Draw a number below `n` uniformly, at a cost of log n nats."""
        self.nats += LOG[n]
        return int(self.random() * n)

    def pick(self, options):
        """Draw one of `options`, each equally likely."""
        return options[self.index(len(options))]

    def fresh(self, options, key=None):
        """Draw one of the `options` that this story has not used yet, each equally likely."""
        used = self.used
        left = [o for o in options if (o if key is None else key(o)) not in used]
        if not left:
            raise ValueError(f"the story has used all of {', '.join(map(str, options))}")
        chosen = left[self.index(len(left))]
        used.add(chosen if key is None else key(chosen))
        return chosen

    def chance(self, probability: float) -> bool:
        """Return True with that probability."""
        yes = self.random() < probability
        self.nats -= math.log(probability if yes else 1.0 - probability)
        return yes

    def say(self, template: str) -> None:
        """Begin a sentence and tell one template."""
        self.tell(compile_template(template))

    def tell(self, program: tuple) -> None:
        """Tell one compiled template, beginning a sentence."""
        self.out.append(BEGIN)
        self.run(program)

    def one(self, *templates: str) -> None:
        """Tell one of several templates, each equally likely."""
        self.say(templates[self.index(len(templates))])

    def run(self, program: tuple) -> None:
        out = self.out
        for operation, operand in program:
            if operation == LITERAL:
                out += operand
            elif operation == SLOT:
                out += self.bound[operand]
            elif operation == CHOICE:
                n = len(operand)
                self.nats += LOG[n]
                self.run(operand[int(self.random() * n)])
            else:
                self.phenomena.add(operand)

    def paragraph(self) -> None:
        """Begin a new paragraph."""
        self.out.append(BREAK)

    def referent(self) -> int:
        """Return the number of a new entity of this story."""
        self.referents += 1
        return self.referents - 1


VOWELS = frozenset("aeiouAEIOU")


def finish(out: list[Piece]) -> tuple[list[str], list[Piece]]:
    """Set capitals, spaces, articles and quotes; return the printed parts (with leading spaces) and their pieces."""
    parts, kept = [], []
    space, capital, ended = "", True, "."
    last = len(out) - 1
    for i, p in enumerate(out):
        kind = p[0]
        if kind == WORD:
            parts.append(space + (p[2] if capital else p[1]))
            space, capital = " ", False
        elif kind == ARTICLE:
            text = "a"
            following = out[i + 1][1] if i < last else "x"
            if (following[0] in VOWELS and following != "one") or following in ("honest", "hour"):
                text = "an"
            parts.append(space + (text.capitalize() if capital else text))
            space, capital = " ", False
        elif kind == STOP:
            parts.append(p[1])
            capital, ended = True, p[1]
        elif kind == COMMA:
            parts.append(p[1])
            ended = ","
        elif kind == OPEN:
            parts.append(space + '"')
            space, capital = "", True
        elif kind == CLOSE:
            parts.append('"')
            capital = ended == "."
        else:
            capital = True
            if kind == PARAGRAPH and parts:
                space = "\n\n"
            continue
        kept.append(p)
    return parts, kept
