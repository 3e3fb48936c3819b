"""Binds characters, things and places to the slots of a story's templates.

By custom, roles are single letters: A is the hero, B the friend, M a relative, W a grown-up, D an animal, o and u are
things, p is a place, h and i are spots. A bound character gives `{A}`, `{A.he}`, `{A.him}`, `{A.his}`, `{A.s}` (Lily's)
and so on. `MOVES` lists the functions that a plot file may call by name (`script`).
"""

from functools import lru_cache

from slms.data.stories.engine import Teller
from slms.data.stories.template import Piece, piece, pieces
from slms.data.stories.words import TABLES, WORDS, pairs, plural

HE = {"he": ("he", "him", "his", "himself"), "she": ("she", "her", "her", "herself")}
KIN = pairs("kin")
PLACES = pairs("places")
SPOTS = {where: [(prep, noun) for noun, *preps in TABLES[where] for prep in preps] for where in ("outdoors", "indoors")}
CHILDREN = {"she": WORDS["girls"], "he": WORDS["boys"]}


def pronouns(role: str, he: str, ref: int, semantic: str = "person") -> dict[str, tuple[Piece, ...]]:
    """Return the pronoun slots of a character; a pronoun has the semantic class of its referent."""
    words = zip(("he", "him", "his", "self"), ("pron", "pron", "det", "pron"), HE[he], strict=True)
    return {f"{role}.{form}": pieces(f"{word}/{pos}.{semantic}", ref) for form, pos, word in words}


@lru_cache(maxsize=1024)  # all combinations of a million tokens would take 80 MB and save a twentieth of the time
def _slots(make, *of) -> dict[str, tuple[Piece, ...]]:
    return make(*of)


def bind(t: Teller, make, *of) -> None:
    """Bind the slots that `make(*of)` returns; recently used ones are not built again."""
    t.bound.update(_slots(make, *of))


def _child(role: str, name: str, he: str, ref: int) -> dict:
    slots = pronouns(role, he, ref)
    base = name.partition("/")[0]
    slots[role] = (piece(name + ("" if "/" in name else "/propn.person"), ref),)
    slots[f"{role}.s"] = (piece(f"{base}'s/propn.person", ref),)
    slots[f"{role}.child"] = pieces("girl" if he == "she" else "boy", ref)
    return slots


def child(t: Teller, role: str, he: str) -> None:
    """Bind a child with a name that the story has not used."""
    if he not in CHILDREN:
        raise ValueError(f"a child is {he!r}; it must be she or he")
    name = t.fresh(CHILDREN[he])
    t.state[role] = he
    bind(t, _child, role, name, he, t.referent())


def _kin(role: str, who: str, ref: int, owner: str, owner_ref: int) -> dict:
    slots = pronouns(role, KIN[who], ref)
    slots[f"{role}.my"] = pieces(HE[owner][2], owner_ref) + pieces(who, ref)
    slots[role] = (piece(f"{who.capitalize()}/propn.person", ref),)
    slots[f"{role}.kin"] = pieces(who, ref)
    return slots


def kin(t: Teller, role: str = "M", owner: str = "A") -> None:
    """Bind a relative of `owner`: {M} is Mom, {M.my} is her mom."""
    who = t.pick(tuple(KIN))
    owner_ref = t.bound[owner][0].referent
    bind(t, _kin, role, who, t.referent(), t.state[owner], owner_ref)


def _grown(role: str, he: str, job: str, look: str, ref: int) -> dict:
    slots = pronouns(role, he, ref)
    slots[f"{role}.the"] = pieces(f"the {job}", ref)
    slots[f"{role}.a"] = pieces(f"a {look} {job}", ref)
    slots[f"{role}.man"] = pieces("woman" if he == "she" else "man", ref)
    return slots


def grown(t: Teller, role: str = "W") -> None:
    """Bind a grown-up known by a trade: {W.the} is the baker."""
    he = t.pick(("she", "he"))
    job = t.pick(WORDS["jobs_woman" if he == "she" else "jobs_man"])
    look = t.pick(WORDS["grown_looks"])
    bind(t, _grown, role, he, job, look, t.referent())


def _animal(role: str, noun: str, look: str, he: str, ref: int) -> dict:
    slots = pronouns(role, he, ref, "animal")
    slots[role] = pieces(noun, ref)
    slots[f"{role}.the"] = pieces(f"the {noun}", ref)
    slots[f"{role}.full"] = pieces(f"the {look} {noun}", ref)
    slots[f"{role}.a"] = pieces(f"a {look} {noun}", ref)
    slots[f"{role}.pl"] = pieces(plural(noun))
    return slots


def animal(t: Teller, role: str, nouns) -> None:
    """Bind an animal: {D.the} is the puppy, {D.a} a fluffy puppy."""
    bind(t, _animal, role, t.fresh(nouns), t.pick(WORDS["animal_looks"]), t.pick(("he", "she")), t.referent())


def _thing(role: str, noun: str, look: str, many: bool, ref: int) -> dict:
    one = not many
    slots = {
        role: (piece(noun, ref),),
        f"{role}.the": pieces(f"the {noun}", ref),
        f"{role}.full": pieces(f"the {look} {noun}", ref),
        f"{role}.a": pieces(f"{'a' if one else 'some'} {look} {noun}", ref),
        f"{role}.one": pieces(f"{'a' if one else 'some'} {noun}", ref),
        f"{role}.look": pieces(look),
        f"{role}.lookn": pieces(f"{look} {noun}", ref),
        f"{role}.it": pieces("it" if one else "they/pron.function", ref),
        f"{role}.obj": pieces("it" if one else "them/pron.function", ref),
        f"{role}.was": pieces("was" if one else "were"),
        f"{role}.is": pieces("is" if one else "are"),
        f"{role}.has": pieces("has" if one else "have"),
        f"{role}.this": pieces("this" if one else "these"),
    }
    if one:
        slots[f"{role}.pl"] = pieces(plural(noun))
        slots[f"{role}.another"] = pieces(f"another {noun}")
    return slots


def thing(t: Teller, role: str, nouns, *, looks=WORDS["toy_looks"] + WORDS["colours"], many: bool = False) -> None:
    """Bind a thing: {o.a} is a red ball, {o.the} the ball, {o.it} and {o.obj} its pronouns."""
    noun = t.fresh(nouns)
    bind(t, _thing, role, noun, t.fresh(looks), many, t.referent())


def toy(t: Teller, role: str) -> None:
    """Bind a toy, sometimes one with a plural name."""
    many = t.chance(0.12)
    thing(t, role, WORDS["toys_plural" if many else "toys"], many=many)


def snack(t: Teller, role: str) -> None:
    """Bind something to eat."""
    thing(t, role, WORDS["snacks"], looks=WORDS["food_looks"])


def _place(role: str, noun: str, ref: int) -> dict:
    return {
        role: pieces(noun, ref),
        f"{role}.the": pieces(f"the {noun}", ref),
        f"{role}.at": pieces(f"{PLACES[noun]} the {noun}", ref),
        f"{role}.to": pieces(f"to the {noun}", ref),
    }


def place(t: Teller, role: str, nouns=WORDS["play_places"]) -> None:
    """Bind an outdoor place: {p.at} is in the park, {p.to} to the park."""
    noun = t.fresh(nouns)
    if noun not in PLACES:
        raise ValueError(f"{noun!r} is none of the `places` of words.txt")
    bind(t, _place, role, noun, t.referent())


def _spot(role: str, prep: str, noun: str, look: str, ref: int) -> dict:
    return {
        role: pieces(f"{prep} the {noun}", ref),
        f"{role}.full": pieces(f"{prep} the {look} {noun}", ref),
        f"{role}.a": pieces(f"{prep} a {look} {noun}", ref),
        f"{role}.the": pieces(f"the {noun}", ref),
        f"{role}.thefull": pieces(f"the {look} {noun}", ref),
    }


def spot(t: Teller, role: str, where: str) -> None:
    """Bind a spot, `indoors` or `outdoors`, where a thing can lie: {h} is under the bench, {h.full} the old bench."""
    if where not in SPOTS:
        raise ValueError(f"a spot is {where!r}; it must be indoors or outdoors")
    prep, noun = t.fresh(SPOTS[where], key=lambda s: s[1])
    look = t.fresh(WORDS["natural_looks" if noun in WORDS["natural"] else "spot_looks"])
    bind(t, _spot, role, prep, noun, look, t.referent())


def _count(role: str, noun: str, n: int) -> dict:
    num = piece(WORDS["numbers"][n])
    word = piece(noun if n == 1 else plural(noun))
    return {role: (num, word), f"{role}.n": (num,), f"{role}.was": pieces("was" if n == 1 else "were")}


def count(t: Teller, role: str, noun: str, n: int) -> None:
    """Bind a number of things: {n} is two apples, {n.n} is two, {n.was} is were."""
    if n >= len(WORDS["numbers"]):
        raise ValueError(f"{n} has no word among the `numbers` of words.txt")
    bind(t, _count, role, noun, n)


def number(t: Teller, role: str, noun: str, least: str, most: str) -> None:
    """Bind a number of things, from `least` to `most`."""
    count(t, role, noun, drawn(t, least, most))


def sum_of(t: Teller, role: str, other: str, both: str, noun: str, least: str, most: str) -> None:
    """Bind two numbers of things, each from `least` to `most`, and their sum."""
    n, m = drawn(t, least, most), drawn(t, least, most)
    for name, size in ((role, n), (other, m), (both, n + m)):
        count(t, name, noun, size)


def drawn(t: Teller, least: str, most: str) -> int:
    """Draw a whole number from `least` to `most`, each equally likely."""
    if not (least.isdecimal() and most.isdecimal() and int(least) <= int(most)):
        raise ValueError(f"{least} to {most} must be two whole numbers, the smaller one first")
    return int(least) + t.index(int(most) - int(least) + 1)


def skip(t: Teller, n: str) -> None:
    """Draw one of `n` and ignore it: no line depends on it now, but without it each seed would give other stories."""
    t.index(int(n))


def _noun(role: str, word: str) -> dict:
    return {role: pieces(word), f"{role}.pl": pieces(plural(word))}


def noun(t: Teller, role: str, word: str) -> None:
    """Bind a word that refers to nobody in the story: {k} is bean, {k.pl} is beans."""
    bind(t, _noun, role, word)


def opposite(t: Teller, role: str, other: str, what: str) -> None:
    """Bind two words of opposite meaning and a thing that can be either."""
    first, second, *nouns = t.fresh(TABLES["opposites"])
    if t.index(2):
        first, second = second, first
    t.bound |= {role: pieces(first), other: pieces(second), what: pieces(t.pick(nouns))}


def trait(t: Teller, role: str) -> None:
    """Bind a trait of character: {A.trait}."""
    t.bound[f"{role}.trait"] = pieces(t.fresh(WORDS["traits"]))


def alias(t: Teller, role: str, other: str) -> None:
    """Give `role` the slots of the character `other` as well, such as {G} for the giver, whoever that is."""
    for form in ("", ".he", ".him", ".his"):
        t.bound[role + form] = t.bound[other + form]


def couple(t: Teller) -> None:
    """Bind {AB} (the two children, in either order) and {they}, {them}, {their} to the pair."""
    a, b = t.bound["A"], t.bound["B"]
    both = (a, b) if t.index(2) == 0 else (b, a)
    ref = t.referent()
    t.bound["AB"] = both[0] + pieces("and") + both[1]
    t.bound.update({k: pieces(k, ref) for k in ("they", "them", "their")})


MOVES = {
    move.__name__.removesuffix("_of"): move
    for move in (
        *(child, kin, grown, animal, thing, toy, snack, place, spot),
        *(number, sum_of, noun, opposite, trait, alias, couple, skip),
    )
}
