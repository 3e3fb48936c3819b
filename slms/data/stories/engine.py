"""The story engine: templates compiled once, then told with one random number a choice.

A template is a string of ordinary English with five marks:

    (a|b|c)   one alternative, each equally likely; nests; an alternative may be empty
    {A.he}    a slot: the words bound to that key (a character, a thing, a place, a number)
    {#cause}  notes that a phenomenon occurs; prints nothing
    $glad     a shared choice from `phrases.py`
    ^         the next word begins a sentence (needed only after `!"` and `?"`)

Words carry labels from the lexicon; `light/adj` or `light/adj.quality` overrides them. Capitals, spaces, `a`/`an` and
quotes are set when the story is finished, so templates are written in lower case or any case.
"""

import math
import random
import re
from typing import NamedTuple

from slms.data.stories import phrases
from slms.data.stories.lexicon import LEXICON, NUMBERED, POS, PROPER, SEMANTIC

WORD, ARTICLE, STOP, COMMA, OPEN, CLOSE, CAPITAL, PARAGRAPH = range(8)
LITERAL, SLOT, CHOICE, MARK = range(4)
LOG = [0.0] + [math.log(n) for n in range(1, 400)]
TOKEN = re.compile(r"\{#?[^}]*\}|[A-Za-z]+(?:'[a-z]+)?(?:/[a-z]+(?:\.[a-z]+)?)?|[(|)^\".,!?:;]")
SPEECH = re.compile(r"\$(said|cried|whispered) \{(\w+)\}")
VARIED = re.compile(r"\{(?:([ouvD])(\.the)|([hij]))\}")
MACRO = re.compile(r"\$([A-Za-z_]+)")
PHENOMENA = ("names", "agreement", "ioi", "counting", "opposites", "speech", "cause", "place")


class Piece(NamedTuple):
    """One word or mark of a story before capitals and spaces are set."""

    kind: int
    lower: str
    capital: str
    pos: str = "none"
    semantic: str = "none"
    number: str = "none"
    referent: int = -1


class Word(NamedTuple):
    """A labelled word of a story; `text[start:end]` of the story is `text`."""

    start: int
    end: int
    text: str
    pos: str
    semantic: str
    referent: int
    number: str


PUNCTUATION = {
    mark: Piece(kind, mark, mark, "punct")
    for mark, kind in {".": STOP, "!": STOP, "?": STOP, ",": COMMA, ":": COMMA, ";": COMMA}.items()
}
OPEN_QUOTE = Piece(OPEN, '"', '"', "punct")
CLOSE_QUOTE = Piece(CLOSE, '"', '"', "punct")
BEGIN = Piece(CAPITAL, "", "")
BREAK = Piece(PARAGRAPH, "", "")


def piece(word: str, referent: int = -1) -> Piece:
    """The labelled piece of `word`, written `word`, `word/pos` or `word/pos.semantic`."""
    word, _, override = word.partition("/")
    lower = "a" if word.lower() == "an" else word.lower()
    if lower not in LEXICON and not override:
        raise ValueError(f"the word {word!r} is not in the lexicon")
    pos, semantic = LEXICON.get(lower, ("none", "none"))
    if override:
        new_pos, _, new_semantic = override.partition(".")
        pos, semantic = new_pos, new_semantic or semantic
    if pos not in POS or semantic not in SEMANTIC:
        raise ValueError(f"the word {word!r} has unknown labels {pos!r}, {semantic!r}")
    text = word if pos == "propn" else PROPER.get(lower, lower)
    number = NUMBERED.get((lower, pos), NUMBERED.get((lower, ""), "none"))
    return Piece(ARTICLE if lower == "a" else WORD, text, text[0].upper() + text[1:], pos, semantic, number, referent)


def pieces(text: str, referent: int = -1, head: int = -1) -> tuple[Piece, ...]:
    """The pieces of a plain phrase; the word at position `head` refers to `referent`."""
    words = text.split()
    head %= len(words)
    return tuple(piece(w, referent if i == head else -1) for i, w in enumerate(words))


def compile_template(template: str) -> tuple:
    """The program of a template: a tuple of (operation, operand)."""
    template = SPEECH.sub(lambda m: phrases.SPEECH[m[1]].replace("X", m[2]), template)
    template = VARIED.sub(lambda m: f"({{{m[1] or m[3]}{m[2] or ''}}}|{{{m[1] or m[3]}.full}})", template)
    while "$" in template:
        template = MACRO.sub(lambda m: phrases.MACROS[m[1]], template)
    tokens = TOKEN.findall(template)
    if "".join(tokens) != re.sub(r"\s", "", template):
        raise ValueError(f"the template {template!r} has a character that the grammar does not know")
    position, quoted = 0, False

    def sequence() -> tuple:
        nonlocal position, quoted
        program, literal = [], []
        while position < len(tokens) and tokens[position] not in "|)":
            token = tokens[position]
            position += 1
            if token == "(" or token[0] == "{":
                if literal:
                    program.append((LITERAL, tuple(literal)))
                    literal = []
                if token == "(":
                    program.append((CHOICE, alternatives()))
                elif token[1] == "#":
                    if token[2:-1] not in PHENOMENA:
                        raise ValueError(f"the template {template!r} marks the unknown phenomenon {token[2:-1]!r}")
                    program.append((MARK, token[2:-1]))
                else:
                    role, dot, form = token[1:-1].partition(".")
                    program.append((SLOT, role + dot + form.lower()))
            elif token == '"':
                quoted = not quoted
                literal.append(OPEN_QUOTE if quoted else CLOSE_QUOTE)
                if quoted:
                    program.append((MARK, "speech"))
            elif token == "^":
                literal.append(BEGIN)
            else:
                literal.append(PUNCTUATION.get(token) or piece(token))
        if literal:
            program.append((LITERAL, tuple(literal)))
        return tuple(program)

    def alternatives() -> tuple:
        nonlocal position
        result = [sequence()]
        while position < len(tokens) and tokens[position] == "|":
            position += 1
            result.append(sequence())
        if position == len(tokens):
            raise ValueError(f"the template {template!r} has an open bracket")
        position += 1
        return tuple(result)

    program = sequence()
    if position < len(tokens) or quoted:
        raise ValueError(f"the template {template!r} has a stray bracket or an open quote")
    return program


class Teller:
    """A story being told: the random source, what each key is bound to, the pieces so far, and its cost in nats."""

    programs: dict[str, tuple] = {}

    def __init__(self, seed: str):
        self.random = random.Random(seed).random
        self.begin()

    def begin(self) -> None:
        """Forget everything told so far, but not the place in the random stream."""
        self.out: list[Piece] = []
        self.bound: dict[str, tuple[Piece, ...]] = {}
        self.nats = 0.0
        self.phenomena: set[str] = set()
        self.referents = 0
        self.used: set = set()
        self.state: dict = {}

    def index(self, n: int) -> int:
        """A uniform choice among `n`, charged log n nats."""
        self.nats += LOG[n]
        return int(self.random() * n)

    def pick(self, options):
        """One of `options`, each equally likely."""
        return options[self.index(len(options))]

    def fresh(self, options, key=None):
        """One of `options` that this story has not used yet, each equally likely."""
        used = self.used
        left = [o for o in options if (o if key is None else key(o)) not in used]
        chosen = left[self.index(len(left))]
        used.add(chosen if key is None else key(chosen))
        return chosen

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        yes = self.random() < probability
        self.nats -= math.log(probability if yes else 1.0 - probability)
        return yes

    def say(self, template: str) -> None:
        """Tell one template, beginning a sentence."""
        program = self.programs.get(template)
        if program is None:
            program = self.programs[template] = compile_template(template)
        self.out.append(BEGIN)
        self.run(program)

    def one(self, *templates: str) -> None:
        """Tell one of several templates, each equally likely."""
        self.say(templates[self.index(len(templates))])

    def maybe(self, probability: float, *templates: str) -> None:
        """Tell one of several templates, or nothing."""
        if self.chance(probability):
            self.one(*templates)

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
        """A new entity of this story."""
        self.referents += 1
        return self.referents - 1


VOWELS = frozenset("aeiouAEIOU")


def finish(out: list[Piece]) -> tuple[list[str], list[Piece]]:
    """Set capitals, spaces, articles and quotes: the printed parts (with their leading space) and their pieces."""
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
