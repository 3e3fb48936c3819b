"""Reads plots as plain text from `plots/` and `moves.txt`, each file once. This is the whole language:

# a comment
shows place cause          names the phenomena that the story contains
toy o                      a move: casts a role (see `MOVES` of `cast`) or tells a shared part (`moves.txt`)
animal D: @pets dog cat    a move that takes words; `@pets` is a list of `words.txt`
choose way: dog luck       draws a word, each equally likely; `<way>` stands for it below; one word is no choice
choose x y: a,b b,a        does the same for two names at once
fresh plant: bean melon    is like `choose`, but draws a word that the story has not used yet
if way is dog              tells the lines indented by two spaces below if this holds; `else` may follow
maybe .45                  tells the lines indented by two spaces below with this probability; `else` may follow
paragraph                  begins a new paragraph; the lines above the first one cast and open the story
- {A} put {o.the} {h}.     a sentence (see `template`); sentences in a row are alternatives, each equally likely,
- {o.the} {o.was} {h}.     until an empty line or a line of another kind
"""

import inspect
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from operator import methodcaller
from typing import NamedTuple

from slms.data.stories import cast
from slms.data.stories.engine import Teller
from slms.data.stories.lines import Line, TextError, located, read
from slms.data.stories.template import PHENOMENA, compile_template, piece
from slms.data.stories.words import listed

Act = Callable[[Teller], object]
NAME = re.compile(r"<(\w+)>")
RULES = {
    "paragraph": "`paragraph` alone",
    "shows": f"`shows` and some of {', '.join(PHENOMENA)}",
    "choose": "`choose NAME: WORD …`, with as many words joined by commas as there are names",
    "fresh": "`fresh NAME: WORD …`, with as many words joined by commas as there are names",
    "if": "`if NAME is WORD`, a name of a `choose` or `fresh` above and one of its words, with lines indented below",
    "maybe": "`maybe` and a probability between 0 and 1, such as .45, with lines indented below",
    "else": "right below the lines of an `if` or a `maybe`",
}  # how a line must read that begins with such a word


class Step(NamedTuple):
    """What a line of a file does to a story."""

    line: Line
    act: Act


def run(steps: Sequence[Step], t: Teller) -> None:
    """Take the steps of a plot, or of a part of it, in order; raises TextError where one cannot be taken."""
    try:
        for step in steps:
            step.act(t)
    except (KeyError, ValueError) as error:
        raise located(step.line, error) from None


def one(ways: Sequence[Sequence[Step]], t: Teller) -> None:
    """Take one of several ways, each equally likely."""
    run(ways[t.index(len(ways))], t)


class Reader:
    """Turns the lines of one file into steps; names are local to the file, `words` holds what each may stand for."""

    def __init__(self, file: str, known: dict[str, Callable]):
        self.file, self.known, self.words = file, known, dict[str, list[str]]()

    def steps(self, lines: list[Line]) -> list[Step]:
        """Return the steps of the lines of a block."""
        steps: list[Step] = []
        queue = lines[::-1]
        while queue:
            line = queue.pop()
            try:
                if line.text.startswith("- "):
                    ways = [[Step(line, self.sentence(line))]]
                    while queue and queue[-1].text.startswith("- ") and not queue[-1].apart:
                        line = queue.pop()
                        ways.append([Step(line, self.sentence(line))])
                    steps.append(Step(line, partial(one, ways)) if len(ways) > 1 else ways[0][0])
                else:
                    follows = line.below and queue and queue[-1].below and queue[-1].text == "else"
                    steps.append(Step(line, self.statement(line, queue.pop().below if follows else [])))
            except (KeyError, ValueError) as error:
                raise located(line, error) from None
        return steps

    def sentence(self, line: Line) -> Act:
        """Return a step that tells one template, with names replaced by their words."""
        text = line.text.removeprefix("- ")
        if line.below:
            raise ValueError("nothing may be indented below a sentence")
        for variant in self.variants(text):
            program = compile_template(variant)
        return (lambda t: t.say(self.filled(text, t))) if "<" in text else methodcaller("tell", program)

    def statement(self, line: Line, other: list[Line]) -> Act:
        """Return the step of any other line; `other` holds the lines below its `else`."""
        start, _, rest = line.text.partition(":")
        head, *args = start.split() or [""]
        words = listed(rest)
        if line.below and head not in ("if", "maybe", "else"):
            raise ValueError(f"nothing may be indented below {line.text!r}")
        match head, args, words:
            case "if", [name, "is", word], () if line.below and word in self.words.get(name, ()):
                return self.branch(line, other, lambda t: t.state.get(self.key(name)) == word)
            case "maybe", [share], () if line.below and re.fullmatch(r"0?\.\d+", share):
                return self.branch(line, other, lambda t: t.chance(float(share)))
            case "paragraph", [], ():
                return Teller.paragraph
            case "shows", [_, *_], () if set(args) <= set(PHENOMENA):
                return lambda t: t.phenomena.update(args)
            case "choose" | "fresh", [_, *_], _ if {len(word.split(",")) for word in words} == {len(args)}:
                return self.choice(head, args, words)
            case _ if head in RULES:
                raise ValueError(f"{line.text!r} must be {RULES[head]}")
        return self.call(head, args, words)

    def branch(self, line: Line, other: list[Line], holds: Callable[[Teller], bool]) -> Act:
        """Return a step that takes the lines below `line` if `holds`, else the others."""
        then, instead = self.steps(line.below), self.steps(other)
        return lambda t: run(then if holds(t) else instead, t)

    def choice(self, kind: str, names: list[str], words: tuple[str, ...]) -> Act:
        """Return a step that draws one of the words and lets the names stand for it, or for its parts."""
        values = {word: {self.key(n): w for n, w in zip(names, word.split(","), strict=True)} for word in words}
        for name in names:
            self.words.setdefault(name, []).extend(values[word][self.key(name)] for word in words)
        if len(words) == 1 and kind == "choose":
            return lambda t: t.state.update(values[words[0]])
        return lambda t: t.state.update(values[(t.fresh if kind == "fresh" else t.pick)(words)])

    def call(self, name: str, args: list[str], words: tuple[str, ...]) -> Act:
        """Return a step that makes a move by its name; the line's words, if any, are its last argument."""
        given: list = [*args, words] if words else args
        for move in self.variants(name):
            if move not in self.known:
                raise ValueError(f"{move!r} is no move; the moves are {', '.join(self.known)}")
            takes = inspect.signature(self.known[move])
            try:
                takes.bind(None, *given)
            except TypeError:
                raise ValueError(f"`{move}` takes {' '.join(list(takes.parameters)[1:]) or 'nothing'}") from None
        for word in words:
            piece(word)
        self.variants(" ".join(args))
        if "<" in " ".join([name, *args]):
            fill = self.filled
            return lambda t: self.known[fill(name, t)](t, *(a if a is words else fill(a, t) for a in given))
        move_of = self.known[name]
        return lambda t: move_of(t, *given)

    def key(self, name: str) -> str:
        """Return the key under which a story's state keeps the word of a name."""
        return f"<{name}> of {self.file}"

    def filled(self, text: str, t: Teller) -> str:
        """Return the text with its names replaced by their words in this story."""
        return NAME.sub(lambda m: t.state[self.key(m[1])], text)

    def variants(self, text: str) -> list[str]:
        """Return variants of the text in which every word that a name may stand for occurs at least once."""
        names = NAME.findall(text)
        if unknown := [name for name in names if name not in self.words]:
            raise ValueError(f"`<{unknown[0]}>` stands for nothing; it must be a name of a `choose` or `fresh` above")
        most = max((len(self.words[name]) for name in names), default=1)

        def variant(i: int) -> str:
            return NAME.sub(lambda m: self.words[m[1]][i % len(self.words[m[1]])], text)

        return [variant(i) for i in range(most)]


@cache
def moves() -> dict[str, Callable]:
    """Map names to moves: first the functions of `cast`, then the parts in `moves.txt`."""
    reader = Reader("moves.txt", dict(cast.MOVES))
    for line in read(reader.file):
        head, _, name = line.text.partition(" ")
        if head != "move" or not name.isidentifier() or name in reader.known or name in RULES or not line.below:
            raise TextError(f"{line.where}: {line.text!r} must be `move` and a new name, with lines indented below")
        reader.known[name] = partial(run, reader.steps(line.below))
    return reader.known
