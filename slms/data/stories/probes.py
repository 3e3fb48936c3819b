"""Minimal pairs in the corpus's own words: a prompt, the word that must follow, and a foil that must not.

    for probe in probes("ioi", 100):
        score = log_prob(probe.prompt, probe.answer) - log_prob(probe.prompt, probe.foil)

Every prompt begins like a story (with an opening, most often a journey), so that it looks like training text to a model
of the corpus. Answer and foil are one word each, with a leading space and of the same class; both occur in the corpus.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from slms.data.stories import cast
from slms.data.stories.engine import Teller, finish
from slms.data.stories.script import moves
from slms.data.stories.template import Piece, pieces
from slms.data.stories.words import TABLES, WORDS, plural

GLAD = ("happy", "glad", "cheerful", "joyful", "delighted", "pleased", "merry")
# pairs, sums and spots whose words are single tokens of the shipped tokenizer
PAIRS = {"big", "hot", "wet", "fast", "old", "soft", "loud", "long", "heavy", "dark", "full", "high", "strong", "tall"}
LARGEST_SUM = 10
LONG_NAMES = {"fountain", "sandbox"}
SAD = ("sad", "unhappy", "gloomy", "upset", "miserable")
WITHIN = 0.5  # the probability of each of a probe's two mirror images


class Probe(NamedTuple):
    """One minimal pair. `prompt + answer` is right, `prompt + foil` is wrong."""

    kind: str
    prompt: str
    answer: str
    foil: str


def _children(t: Teller) -> tuple[str, str]:
    """Return the two children, in either order."""
    return ("A", "B") if t.chance(WITHIN) else ("B", "A")


def _ioi(t: Teller) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """The receiver is the one of two named children who does not give (Wang et al. 2022, arXiv 2211.00593)."""
    giver, taker = _children(t)
    cast.alias(t, "G", giver)
    cast.snack(t, "v")
    t.one(
        "when {AB} $rested, {G} gave {v.a} to",
        "{AB} $rested. {G} (gave|handed|passed) {v.a} to",
        "after {AB} $rested, {G} (handed|offered|passed) {v.a} to",
    )
    return t.bound[taker], t.bound[giver]


def _agreement(t: Teller) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """The verb agrees with the first noun, not with the nearer one of the other number."""
    a = t.pick(("tree", "flower", "rock", "fence", "bench", "bush", "boat", "path", "gate", "box", "cart", "lamp"))
    b = t.pick(("river", "house", "hill", "pond", "tower", "barn", "bridge", "shop", "road", "shed"))
    one = t.chance(WITHIN)
    t.bound.update(x=pieces(a if one else plural(a)), y=pieces(plural(b) if one else b))
    t.one("the {x} $beside_one the {y}", "{A} (saw|noticed|thought) that/conj the {x} $beside_one the {y}")
    was, were = pieces("was"), pieces("were")
    return (was, were) if one else (were, was)


def _counting(t: Teller) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """A sum of two numbers up to six."""
    n = 1 + t.index(6)
    m = 1 + t.index(min(6, LARGEST_SUM - n))
    noun = t.pick(WORDS["foods"] + WORDS["counted"])
    cast.count(t, "n", noun, n)
    cast.count(t, "m", noun, m)
    t.one(
        "{A} counted {n}. {B} (brought|found|added) {m.n} more. {n.n} and {m.n} make",
        "{A} (found|picked) {n}, and {B} (found|picked) {m}. (together|in all), {they} had/verb.action",
        "{A} had/verb.action {n} and {B} had/verb.action {m}. that (made|was)",
    )
    wrong = t.pick([k for k in range(2, LARGEST_SUM + 1) if k != n + m])
    return pieces(WORDS["numbers"][n + m]), pieces(WORDS["numbers"][wrong])


def _opposites(t: Teller) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """A thing that is not x is its opposite y, not the opposite of something else."""
    pairs = [pair for pair in TABLES["opposites"] if pair[0].partition("/")[0] in PAIRS]
    x, y, *nouns = t.fresh(pairs)
    _, other, *_ = t.fresh(pairs)
    if t.chance(WITHIN):
        x, y = y, x
    t.bound.update(x=pieces(x), z=pieces(t.pick(nouns)))
    t.one(
        '"is your {z} {x}?" asked {B}. "no/intj.speech," said {A}. "it is not {x} but" ',
        '"is that a {x} {z} over there?" asked {A}. "it is not {x} but" ',
        '"the opposite of {x} is" ',
    )
    t.out.pop()  # the closing quote comes after the answer
    return pieces(y), pieces(other)


def _pronoun(t: Teller) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """The pronoun has the gender of the child just named; the two children differ in gender."""
    who, other = _children(t)
    cast.alias(t, "G", who)
    cast.alias(t, "F", other)
    t.one(
        "{F} waved, and {G} (smiled|laughed) because",
        "{F} sat down. {G} was $very (hungry|tired) because",
        "{G} $walked home with {F}. before bed, {G} was $very $glad, and soon",
    )
    return t.bound[f"{who}.he"], t.bound[f"{other}.he"]


def _place(t: Teller) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """A thing is where it was put; another thing was put in another place in the same way."""
    preps = [prep for prep, _ in cast.SPOTS["outdoors"]]
    prep = t.pick([p for p in ("under", "behind", "inside", "on", "beside") if preps.count(p) > 1])
    nouns = [noun for how, noun in cast.SPOTS["outdoors"] if how == prep and noun not in LONG_NAMES]
    cast.toy(t, "o")
    cast.toy(t, "u")
    here, there = t.fresh(nouns), t.fresh(nouns)
    t.bound.update(h=pieces(f"{prep} the {here}"), i=pieces(f"{prep} the {there}"), w=pieces(f"{prep} the"))
    t.bound["h.full"], t.bound["i.full"] = t.bound["h"], t.bound["i"]
    first = "{A} put {o.the} {h}, and {B} put {u.the} {i}."
    second = "{B} put {u.the} {i}, and {A} put {o.the} {h}."
    t.say(first if t.chance(WITHIN) else second)
    t.one("then {AB} played $game.", "then {AB} $walked (around|along the path) for (an hour|a while/noun.time).")
    t.one(
        'then {A} remembered. "I left/verb.action {o.obj} {w}" ',
        '"where {o.is} {o.the}?" asked {B}. "I put {o.obj} {w}" ',
    )
    t.out.pop()
    return t.bound["h"][-1:], t.bound["i"][-1:]


def _feeling(t: Teller) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """A loss makes a child sad; a find makes it glad."""
    cast.toy(t, "o")
    glad, sad = pieces(t.pick(GLAD)), pieces(t.pick(SAD))
    if t.chance(WITHIN):
        t.one(
            "because {o.the} {o.was} (lost|missing|gone), {A} felt very",
            "{A} had lost/verb.action {A.his} {o}. {A.He} was very",
            "{B} broke {o.the}. {A} was very",
        )
        return sad, glad
    t.one(
        "because {o.the} {o.was} found, {A} felt very",
        "$lastly {A} found {o.the}. {A.He} was very",
        "{B} gave {o.full} to {A}. {A} was very",
    )
    return glad, sad


KINDS: dict[str, Callable[[Teller], tuple[tuple[Piece, ...], tuple[Piece, ...]]]] = {
    "ioi": _ioi,
    "agreement": _agreement,
    "counting": _counting,
    "opposites": _opposites,
    "pronoun": _pronoun,
    "place": _place,
    "feeling": _feeling,
}


def probe(kind: str, index: int, seed: int = 0) -> Probe:
    """Make probe `index` of a kind; the same arguments give the same probe everywhere.

    Raises ValueError if `kind` is not in `KINDS`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}.")
    t = Teller(f"probe/{kind}/{seed}/{index}")
    while True:
        t.begin()
        moves()["people"](t)
        if t.state["A"] != t.state["B"] or kind != "pronoun":
            break
    moves()["opening"](t)
    t.paragraph()
    cast.place(t, "p")
    moves()["travel"](t)
    answer, foil = KINDS[kind](t)
    prompt, right, wrong = ("".join(finish([*t.out, *tail])[0]) for tail in ((), answer, foil))
    return Probe(kind, prompt, right.removeprefix(prompt), wrong.removeprefix(prompt))


def probes(kind: str, n: int, seed: int = 0) -> Iterator[Probe]:
    """Yield the first `n` probes of a kind."""
    return (probe(kind, index, seed) for index in range(n))
