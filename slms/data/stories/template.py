"""Templates are ordinary English with a few marks; each is compiled once to a small program.

    (a|b|c)   one alternative, each equally likely; they nest, and one may be empty
    {A.he}    a slot: the words bound to that key (a character, a thing, a place, a number)
    $glad     a shared choice from `phrases.txt`
    {#cause}  notes that a phenomenon occurs and prints nothing
    $said {A} the choice `said X` of `phrases.txt`, with A for X
    {o.the}   a thing or animal, `the ball` or `the red ball`; so too `{h}`, `under the bench` or `under the old bench`
    ^         the next word begins a sentence (needed only after `!"` and `?"`)

The lexicon labels words; `light/adj` or `light/adj.quality` overrides it. Capitals, spaces, `a`/`an` and quotes are set
when the story is finished, so write templates in lower case.
"""

import re
from functools import cache, lru_cache
from typing import NamedTuple

from slms.data.stories.lexicon import DEFAULT, NUMBERED, POS, PROPER, SEMANTIC
from slms.data.stories.words import PHRASES

WORD, ARTICLE, STOP, COMMA, OPEN, CLOSE, CAPITAL, PARAGRAPH = range(8)
LITERAL, SLOT, CHOICE, MARK = range(4)
TOKEN = re.compile(r"\{#?[^}]*\}|[A-Za-z]+(?:'[a-z]+)?(?:/[a-z]+(?:\.[a-z]+)?)?|[(|)^\".,!?:;]")
ABOUT = re.compile(r"\$(\w+) \{(\w+)\}")
VARIED = re.compile(r"\{(?:([ouvD])(\.the)|([hij]))\}")
PHRASE = re.compile(r"\$(\w+)")
DEEP = 5  # how deep phrases may nest
PHENOMENA = ("names", "agreement", "ioi", "counting", "opposites", "speech", "cause", "place")


class Piece(NamedTuple):
    """One word or mark of a story, before capitals and spaces are set."""

    kind: int
    lower: str
    capital: str
    pos: str = "none"
    semantic: str = "none"
    number: str = "none"
    referent: int = -1


PUNCTUATION = {
    mark: Piece(kind, mark, mark, "punct")
    for mark, kind in {".": STOP, "!": STOP, "?": STOP, ",": COMMA, ":": COMMA, ";": COMMA}.items()
}
OPEN_QUOTE = Piece(OPEN, '"', '"', "punct")
CLOSE_QUOTE = Piece(CLOSE, '"', '"', "punct")
BEGIN = Piece(CAPITAL, "", "")
BREAK = Piece(PARAGRAPH, "", "")


@lru_cache(maxsize=8192)  # a quarter of a story's time, in 2 MB
def piece(word: str, referent: int = -1) -> Piece:
    """Return the labelled piece of `word`, written as `word`, `word/pos` or `word/pos.semantic`."""
    word, _, override = word.partition("/")
    lower = "a" if word.lower() == "an" else word.lower()
    if lower not in DEFAULT and not override:
        raise ValueError(f"the word {word!r} is not in the lexicon")
    pos, semantic = DEFAULT.get(lower, ("none", "none"))
    if override:
        new_pos, _, new_semantic = override.partition(".")
        pos, semantic = new_pos, new_semantic or semantic
    if pos not in POS or semantic not in SEMANTIC:
        raise ValueError(f"the word {word!r} has unknown labels {pos!r}, {semantic!r}")
    text = word if pos == "propn" else PROPER.get(lower, lower)
    number = NUMBERED.get((lower, pos), "sing" if pos in ("noun", "propn") else "none")
    return Piece(ARTICLE if lower == "a" else WORD, text, text[0].upper() + text[1:], pos, semantic, number, referent)


def pieces(text: str, referent: int = -1, head: int = -1) -> tuple[Piece, ...]:
    """Return the pieces of a plain phrase; the word at position `head` refers to `referent`."""
    words = text.split()
    head %= len(words)
    return tuple(piece(w, referent if i == head else -1) for i, w in enumerate(words))


def infinitive(token: str, tokens: list[str], position: int) -> str:
    """Label `to` as a particle if the next word is a verb ("to play", "to (see|visit)"); else return the token."""
    if token != "to":
        return token
    while position < len(tokens) and tokens[position] == "(":
        position += 1
    following = tokens[position].lower() if position < len(tokens) else ""
    return "to/part" if DEFAULT.get(following, ("",))[0] in ("verb", "aux") else token


def phrase(name: str) -> str:
    """Return the text of a shared choice; raise ValueError if there is none of that name."""
    if name not in PHRASES:
        raise ValueError(f"${name} is no phrase of phrases.txt")
    return PHRASES[name]


def with_phrases(template: str) -> str:
    """Return the template with its shared choices written out."""
    template = ABOUT.sub(lambda m: PHRASES.get(f"{m[1]} X", m[0]).replace("X", m[2]), template)
    for _ in range(DEEP):
        template = PHRASE.sub(lambda m: phrase(m[1]), template)
    return template


@cache
def compile_template(template: str) -> tuple:
    """Compile a template to a tuple of (operation, operand); raise ValueError if the template is wrong."""
    template = with_phrases(template)
    template = VARIED.sub(lambda m: f"({{{m[1] or m[3]}{m[2] or ''}}}|{{{m[1] or m[3]}.full}})", template)
    tokens = TOKEN.findall(template)
    if "".join(tokens) != re.sub(r"\s", "", template):
        raise ValueError(f"the template {template!r} has a character that the grammar does not know")
    position, quoted = 0, False

    def sequence() -> tuple:
        nonlocal position, quoted
        program: list[tuple] = []
        literal: list[Piece] = []
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
                literal.append(PUNCTUATION.get(token) or piece(infinitive(token, tokens, position)))
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
