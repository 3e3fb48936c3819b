# ruff: noqa: E501  (a template or a word list is read as one line)
"""The parts that all plots share: openings, journeys, detours and endings."""

from slms.data.stories import cast
from slms.data.stories import entities as E
from slms.data.stories.engine import Teller
from slms.data.stories.template import pieces


def people(t: Teller) -> None:
    """Bind the hero A, the friend B (most often of the other gender), a relative M, and the pair."""
    he = t.pick(("she", "he"))
    cast.child(t, "A", he)
    other = t.chance(0.75)
    cast.child(t, "B", {"she": "he", "he": "she"}[he] if other else he)
    cast.kin(t)
    cast.trait(t, "A")
    cast.couple(t)
    t.phenomena.add("names")


def opening(t: Teller) -> None:
    """The first paragraph: who the hero is."""
    t.one(
        "(once upon a time|once|long ago), there was a {A.trait} {A.child} named {A}.",
        "(there was once|once there was) a {A.trait} {A.child} (called|named) {A} who had $feature.",
        "{A} was a {A.trait} (little|young|small) {A.child} with $feature.",
        "$home lived a {A.trait} {A.child} (called|named|whose name was) {A}.",
        "{A} lived $home with {M.my}. {A.He} was a {A.trait} {A.child}.",
        "everyone (in the village|at school|on the street|in town) knew {A}, a {A.trait} {A.child} with $feature.",
        "a {A.trait} {A.child} (named|called) {A} lived $home.",
        "this is the story of {A}, a {A.trait} {A.child} who lived $home.",
    )  # fmt: skip
    one, two = ("$hobby_in", "$hobby_out") if t.index(2) else ("$hobby_out", "$hobby_in")
    alone = (
        f"{{A.He}} (liked|loved) {one}, and {{A.he}} (liked|loved) {two} too.",
        f"(more than anything|most of all|above all), {{A.he}} (liked|loved) {one}.",
        f"(every|each) $morning, {{A.he}} (liked|loved) {one}, and {{M}} (liked|loved) {two}.",
        f"when {{A.he}} was not (at school|asleep|busy|hungry), {{A}} (liked|loved) {one}.",
        f"{{M.my}} (liked|loved) {one}, but {{A}} (liked|loved) {two}.",
    )
    together = (
        f"{{A.his}} (best|good|dear|closest) friend was {{B}}, who (liked|loved) {one}.",
        f"{{A}} had/verb.action a (good|best|dear) friend named {{B}}. {{AB}} (liked|loved) {one}.",
        f"{{A}} (liked|loved) {one}, and so did {{A.his}} (best|good|dear) friend {{B}}.",
    )
    t.one(*(alone if t.state.get("stranger") else alone + together))


def travel(t: Teller) -> None:
    """Two children go to the place p together; state: both are there."""
    t.phenomena.add("place")
    t.one(
        "$when, {AB} $walked {p.to}.",
        "$when, {AB} $walked {p.to} (together|hand in hand|side by side|in the sun).",
        "{AB} $walked {p.to} $when.",
        "$when, {A} (met|found) {B} {p.at}.",
        "$when, {B} came to (see|visit) {A}, and {AB} $walked {p.to} (together|to play|hand in hand).",
        '"let us go {p.to}," said {A} $when. {B} $smiled, and {they} $walked there $at_once.',
    )  # fmt: skip
    t.maybe(
        0.45,
        "the (sun was (warm|bright|high)|sky was (clear|blue|bright)|air was (warm|fresh|sweet)|grass was (soft|wet|green|long)), and the (birds|bees|crickets|frogs) (sang|hummed|danced|played) (all around|in the grass|near {them}|).",
        "{p.the} was (full of|busy with) (people|birds|children|flowers|noise|colors) that $morning.",
        "a (soft|cool|gentle|strong|warm) wind (blew|played) (over|across|through) the (grass|trees|flowers|hills|water).",
        "the (leaves|clouds|flowers|shadows) (moved|danced|swayed) (slowly|gently|lightly) in the (wind|breeze|sun).",
        "(big|white|small|gray|soft) clouds (sailed|drifted|floated) over {p.the}.",
    )


def agreement(t: Teller) -> None:
    """A description whose verb agrees across an attractor of the other number."""
    t.phenomena.add("agreement")
    a = t.fresh(("tree", "flower", "rock", "fence", "bench", "bush", "boat", "wall", "path", "gate", "leaf", "hut", "basket",
                 "box", "cart", "barrel", "lamp", "window"))  # fmt: skip
    b = t.fresh(
        ("river", "house", "hill", "pond", "tower", "barn", "well/noun.place", "bridge", "shop", "road", "shed", "wall")
    )
    first = t.index(2)
    subject = a if first == 0 else E.plural(a)
    attractor = E.plural(b) if first == 0 or t.index(2) else b
    t.bound.update(x=pieces(subject), y=pieces(attractor))
    t.bound["x.was"], t.bound["x.is"] = (pieces(w) for w in (("was", "is") if first == 0 else ("were", "are")))
    where = "$beside_one" if attractor == b else "$beside_many"
    t.one(
        f"the {{x}} {where} the {{y}} {{x.was}} $look.",
        f"{{A}} (saw|noticed|thought) that/conj the {{x}} {where} the {{y}} {{x.was}} $look.",
        f"the $look {{x}} {where} the {{y}} {{x.was}} (new|old|lovely|easy to see|full of (bugs|birds|ants)).",
        f'"look! the {{x}} {where} the {{y}} {{x.is}} $look," said {{B}}.',
    )


def counting(t: Teller) -> None:
    """Small sums told as events or said aloud."""
    t.phenomena.add("counting")
    noun = t.fresh((*E.FOODS, "shell", "stone", "flower", "leaf", "stick", "feather", "coin", "button", "acorn"))
    n, m = 1 + t.index(6), 1 + t.index(6)
    cast.count(t, "n", noun, n)
    cast.count(t, "m", noun, m)
    cast.count(t, "s", noun, n + m)
    if t.index(3) == 0:
        t.one(
            "{A} had/verb.action {s} in {A.his} (bag|basket|pocket). {A.He} gave {m.n} (of them|) to {B}, so/conj {A.he} had/verb.action {n.n} left.",
            "there {s.was} {s} on (a plate|the table|a blanket). {AB} took {m.n}, and {n.n} {n.was} left.",
            "{B} (counted|found|had) {s}, but {m.n} fell in the (mud|water|grass). now {B.he} had/verb.action only {n.n}.",
        )
        return
    t.one(
        "{A} (found|picked|had) {n}, and {B} (found|picked|had) {m}. (together|in all), {they} had/verb.action {s}.",
        '{A} counted {n}. {B} (brought|found|added) {m.n} more. "{n.n} and {m.n} make {s.n}," said {A}.',
        '"{n} and {m} make {s}," {B} said (proudly|with a grin/noun.body|after some thought|happily).',
        "{A} had/verb.action {n} and {B} had/verb.action {m}. that (made|was) {s} (in all|together).",
        '"how many are {n} and {m}?" $asked {B}. "{s.n}," said {A} (at once|after some thought|with a smile/noun.body|).',
    )


def opposites(t: Teller) -> None:
    """Two words of opposite meaning in one breath."""
    t.phenomena.add("opposites")
    x, y, nouns = t.fresh(E.OPPOSITES)
    if t.index(2):
        x, y = y, x
    t.bound.update(x=pieces(x), y=pieces(y), z=pieces(t.pick(nouns)))
    t.one(
        "{A} wanted a {x} {z}, not a {y} one/pron.function.",
        "{B} wanted a {x} {z}, but {A} liked a {y} one/pron.function (more|better).",
        "(on the way|that day|along the road|by chance), {AB} saw a {x} {z} and a {y} {z}. {B} liked the {x} one/pron.function best.",
        "the first {z} that/pron.function {A} found was {x}, but the (second|next|other/adj.quality) one/pron.function was {y}.",
        "{A} and {B} played a word game. (when|if|each time) {A} (said|called|sang) {x}, {B} (said|called|sang) {y}.",
        '"is your {z} {x}?" asked {B}. "no/intj.speech," said {A}. "it is not {x} but {y}."',
        "one {z} was {x} and one was {y}, and {A} (liked|wanted) the {x} one/pron.function (best|more).",
        '"the opposite of {x} is {y}, {B}," said {A}. "and the opposite of {y} is {x}," said {B}.',
        '"is that a {x} {z} over there?" asked {A}. "it is not {x} but {y}," said {B}.',
    )


def giving(t: Teller) -> None:
    """An indirect object with both names in view; the thing v is eaten or handed over for good."""
    t.phenomena.add("ioi")
    cast.thing(t, "v", E.SNACKS, E.FOOD_LOOKS)
    giver, taker = ("A", "B") if t.index(2) else ("B", "A")
    cast.alias(t, "G", giver)
    cast.alias(t, "T", taker)
    t.one(
        "when {AB} $rested, {G} gave {v.a} to {T}.",
        "{AB} $rested. {G} (gave|handed|passed) {v.a} to {T}.",
        "after {AB} $rested, {G} (handed|offered|passed) {v.a} to {T}.",
        "while {AB} rested, {G} (took|pulled) {v.a} out of {G.his} (bag|pocket) and gave it to {T}.",
    )
    t.one(
        '"thank you, {G}," said {T} (and ate it|with a smile/noun.body|happily|).',
        "{T} (ate it|took a bite/noun.food) and $smiled.",
        "{T} thanked {G.him} and ate it (slowly|quickly|all up|in the sun).",
        "because {T} was hungry, {T.he} ate it $at_once.",
        '"this {v} is (so|very|really) (good|tasty|sweet|yummy)," said {T}.',
    )  # fmt: skip


def sighting(t: Teller) -> None:
    """An animal passes by."""
    cast.animal(t, "Z", E.SEEN)
    t.one(
        "{Z.a} $animal_act $animal_spot.",
        '"look, {Z.a}!" (cried|shouted|called|yelled) {B}. {Z.the} $animal_act.',
        "{A} (saw|spotted/verb.mind|noticed) {Z.a} $animal_spot. {Z.the} looked at {A.him} and $ran_off.",
        "{Z.a} (came|ran|hopped|crept) out of the (grass|leaves|shadows|bushes), and {B} $smiled.",
    )


def song(t: Teller) -> None:
    """Some play or talk on the way."""
    t.one(
        "{AB} played $game for a (while/noun.time|time|bit/noun.time), and {B} (won|lost/verb.action) (twice|three times|once|every time).",
        "{B} sang a (funny|silly|short|happy|slow) song about a {q} and a {r}, and {A} $smiled.",
        "{A} told {B} a (story|joke|secret) about a {q} and a {r}.",
        '"what is your favorite (color|animal|food|day|book|game)?" asked {B}. {A} thought $very hard before {A.he} answered.',
        "on the way, {AB} talked about (school|stars|dragons|dinosaurs|the sea|lunch|trains|ghosts|bugs) and (pirates|birds|cakes|kites|snow|boats|giants|the moon).",
        "{B} (jumped|hopped|danced) over a (puddle|log|stone|stick|crack), and {A} (jumped|hopped|danced) after {B.him}.",
    )  # fmt: skip


DETOURS = (agreement, counting, opposites, giving, sighting, song, agreement, counting, opposites, giving)


def detour(t: Teller, probability: float = 1.0) -> None:
    """One small event that leaves the plot's state alone; no kind twice in a story."""
    if probability < 1.0 and not t.chance(probability):
        return
    event = t.fresh(DETOURS, key=lambda f: f.__name__)
    if event is song:
        t.bound.update(q=pieces(t.fresh(E.SEEN)), r=pieces(t.fresh(E.SEEN)))
    event(t)


def ending(t: Teller) -> None:
    """The last sentences: names again, a feeling, home."""
    t.phenomena.add("names")
    t.one(
        "{A} and {B} $walked home (together|hand in hand|side by side), and both of {them} were $glad.",
        'that (night|evening), {A} told {M.my} (all about it|the whole story|about {B}). "what a $nice day," said {M}.',
        "{A} $smiled at {B}, and {B} $smiled back. it had been a (good|great|long|strange|lovely) day.",
        "before bed, {A} thought of {B} and $smiled. {A.He} was $very $glad, and soon {A.he} was asleep.",
        "when the (sun|light) went down, {AB} said (goodbye|good night) and $walked home. {they} were tired but $glad.",
        '"you are a (true|good|great|real) friend, {B}," said {A}. {B} $smiled and $hugA.',
        "{A} and {B} stayed (good|best|close) friends (for a long time|for years|forever|ever after).",
        "{M} made (cocoa|soup|tea|pancakes|lemonade) for {A} and {B}, and {they} told {M.him} everything.",
        "{A} was only a (small|little|young) {A.child}, but that day {A.he} felt (ten feet tall|very big|as brave as a lion|like a (giant|hero|star)).",
        "and so {A} and {B} (went to bed|fell asleep|ended the day) $glad. the end.",
    )  # fmt: skip
