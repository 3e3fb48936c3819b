"""The parts that all plots share: openings, journeys, detours and endings."""

from slms.data.stories import cast
from slms.data.stories import entities as E
from slms.data.stories.engine import Teller, pieces
from slms.data.stories.phrases import (
    ASKED, AT_ONCE, CRIED, GAME, GLAD, HOBBY_IN, HOBBY_OUT, HOME, HUG, MORNING, NICE, SAID, SMILED,
    VERY, WALKED, WHEN,
)  # fmt: skip

FEATURE = (
    "(brown|black|red|golden|curly|short|long|dark|straight|messy) hair|a (big|loud|warm|funny|quick|happy) laugh|"
    "(green|blue|brown|gray|bright|kind) eyes|a (big|wide|warm|shy|sweet) smile|"
    "(yellow|red|green|blue|muddy|big) (boots|shoes|socks)|a (red|blue|green|striped|yellow|purple) (coat|hat|scarf|sweater)"
)


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
        f"(once upon a time|once|long ago), there was a {{A.trait}} {{A.child}} named {{A}}.",
        f"(there was once|once there was) a {{A.trait}} {{A.child}} (called|named) {{A}} who had ({FEATURE}).",
        f"{{A}} was a {{A.trait}} (little|young|small) {{A.child}} with ({FEATURE}).",
        f"{HOME} lived a {{A.trait}} {{A.child}} (called|named|whose name was) {{A}}.",
        f"{{A}} lived {HOME} with {{M.my}}. {{A.He}} was a {{A.trait}} {{A.child}}.",
        f"everyone (in the village|at school|on the street|in town) knew {{A}}, a {{A.trait}} {{A.child}} with ({FEATURE}).",
        f"a {{A.trait}} {{A.child}} (named|called) {{A}} lived {HOME}.",
        f"this is the story of {{A}}, a {{A.trait}} {{A.child}} who lived {HOME}.",
    )  # fmt: skip
    hobbies = (HOBBY_IN, HOBBY_OUT) if t.index(2) else (HOBBY_OUT, HOBBY_IN)
    alone = (
        f"{{A.He}} (liked|loved) {hobbies[0]}, and {{A.he}} (liked|loved) {hobbies[1]} too.",
        f"(more than anything|most of all|above all), {{A.he}} (liked|loved) {hobbies[0]}.",
        f"(every|each) {MORNING}, {{A.he}} (liked|loved) {hobbies[0]}, and {{M}} (liked|loved) {hobbies[1]}.",
        f"when {{A.he}} was not (at school|asleep|busy|hungry), {{A}} (liked|loved) {hobbies[0]}.",
        f"{{M.my}} (liked|loved) {hobbies[0]}, but {{A}} (liked|loved) {hobbies[1]}.",
    )
    together = (
        f"{{A.his}} (best|good|dear|closest) friend was {{B}}, who (liked|loved) {hobbies[0]}.",
        f"{{A}} had a (good|best|dear) friend named {{B}}. {{AB}} (liked|loved) {hobbies[0]}.",
        f"{{A}} (liked|loved) {hobbies[0]}, and so did {{A.his}} (best|good|dear) friend {{B}}.",
    )
    t.one(*(alone if t.state.get("stranger") else alone + together))


def travel(t: Teller, who: str = "{AB}") -> None:
    """Two children go to the place p together; state: both are there."""
    t.phenomena.add("place")
    t.one(
        f"{WHEN}, {who} {WALKED} {{p.to}}.",
        f"{WHEN}, {who} {WALKED} {{p.to}} (together|hand in hand|side by side|in the sun).",
        f"{who} {WALKED} {{p.to}} {WHEN}.",
        f"{WHEN}, {{A}} (met|found) {{B}} {{p.at}}.",
        f"{WHEN}, {{B}} came to (see|visit) {{A}}, and {{AB}} {WALKED} {{p.to}} (together|to play|hand in hand).",
        f'"let us go {{p.to}}," said {{A}} {WHEN}. {{B}} {SMILED}, and {{they}} {WALKED} there {AT_ONCE}.',
    )  # fmt: skip
    t.maybe(
        0.45,
        "the (sun was (warm|bright|high)|sky was (clear|blue|bright)|air was (warm|fresh|sweet)|grass was (soft|wet|green|long)), and the (birds|bees|crickets|frogs) (sang|hummed|danced|played) (all around|in the grass|near {them}|).",
        f"{{p.the}} was (full of|busy with) (people|birds|children|flowers|noise|colors) that {MORNING}.",
        "a (soft|cool|gentle|strong|warm) wind (blew|played) (over|across|through) the (grass|trees|flowers|hills|water).",
        "the (leaves|clouds|flowers|shadows) (moved|danced|swayed) (slowly|gently|lightly) in the (wind|breeze|sun).",
        "(big|white|small|gray|soft) clouds (sailed|drifted|floated) over {p.the}.",
    )


def agreement(t: Teller) -> None:
    """A description whose verb agrees across an attractor of the other number."""
    t.phenomena.add("agreement")
    a = t.fresh(("tree", "flower", "rock", "fence", "bench", "bush", "boat", "wall", "path", "gate", "leaf", "hut", "basket",
                 "box", "cart", "barrel", "lamp", "window"))  # fmt: skip
    b = t.fresh(("river", "house", "hill", "pond", "tower", "barn", "well", "bridge", "shop", "road", "shed", "wall"))
    first = t.index(2)
    subject = a if first == 0 else E.plural(a)
    attractor = E.plural(b) if first == 0 or t.index(2) else b
    t.bound.update(x=pieces(subject), y=pieces(attractor))
    was = "was" if first == 0 else "were"
    look = "(red|green|white|old|wet|shiny|tall|small|bright|brown|clean|broken|crooked|pretty|yellow|covered in (moss|leaves|dust|snow))"
    where = "(near|by|behind|beside|between|next to)" if attractor != b else "(near|by|behind|beside|next to)"
    t.one(
        f"the {{x}} {where} the {{y}} {was} {look}.",
        f"{{A}} (saw|noticed|thought) that the {{x}} {where} the {{y}} {was} {look}.",
        f"the {look} {{x}} {where} the {{y}} {was} (new|old|lovely|easy to see|full of (bugs|birds|ants)).",
        f'"look! the {{x}} {where} the {{y}} {"is" if first == 0 else "are"} {look}," said {{B}}.',
    )


def counting(t: Teller) -> None:
    """Small sums told as events or said aloud."""
    t.phenomena.add("counting")
    noun = t.fresh((*E.FOODS, "shell", "stone", "flower", "leaf", "stick", "feather", "coin", "button", "acorn"))
    n, m = 1 + t.index(6), 1 + t.index(6)
    cast.count(t, "n", noun, n)
    cast.count(t, "m", noun, m)
    cast.count(t, "s", noun, n + m)
    cast.count(t, "l", noun, n)
    if t.index(3) == 0:
        t.one(
            f"{{A}} had {{s}} in {{A.his}} (bag|basket|pocket). {{A.He}} gave {{m.n}} (of them|) to {{B}}, so {{A.he}} had {{n.n}} left.",
            f"there {{s.was}} {{s}} on (a plate|the table|a blanket). {{AB}} took {{m.n}}, and {{n.n}} {{n.was}} left.",
            f"{{B}} (counted|found|had) {{s}}, but {{m.n}} fell in the (mud|water|grass). now {{B.he}} had only {{n.n}}.",
        )
        return
    t.one(
        f"{{A}} (found|picked|had) {{n}}, and {{B}} (found|picked|had) {{m}}. (together|in all), {{they}} had {{s}}.",
        f'{{A}} counted {{n}}. {{B}} (brought|found|added) {{m.n}} more. "{{n.n}} and {{m.n}} make {{s.n}}," {SAID} {{A}}.',
        f'"{{n}} and {{m}} make {{s}}," {{B}} {SAID} (proudly|with a grin|after some thought|happily).',
        f"{{A}} had {{n}} and {{B}} had {{m}}. that (made|was) {{s}} (in all|together).",
        f'"how many are {{n}} and {{m}}?" {ASKED} {{B}}. "{{s.n}}," {SAID} {{A}} (at once|after some thought|with a smile|).',
    )


def opposites(t: Teller) -> None:
    """Two words of opposite meaning in one breath."""
    t.phenomena.add("opposites")
    x, y, nouns = t.fresh(E.OPPOSITES)
    if t.index(2):
        x, y = y, x
    t.bound.update(x=pieces(x), y=pieces(y), z=pieces(t.pick(nouns)))
    t.one(
        "{A} wanted a {x} {z}, not a {y} one.",
        "{B} wanted a {x} {z}, but {A} liked a {y} one (more|better).",
        "(on the way|that day|along the road|by chance), {AB} saw a {x} {z} and a {y} {z}. {B} liked the {x} one best.",
        "the first {z} that {A} found was {x}, but the (second|next|other) one was {y}.",
        '{A} and {B} played a word game. (when|if|each time) {A} (said|called|sang) {x}, {B} (said|called|sang) {y}.',
        '"is your {z} {x}?" asked {B}. "no," said {A}. "it is not {x} but {y}."',
        "one {z} was {x} and one was {y}, and {A} (liked|wanted) the {x} one (best|more).",
        '"the opposite of {x} is {y}, {B}," said {A}. "and the opposite of {y} is {x}," said {B}.',
        '"is that a {x} {z} over there?" asked {A}. "it is not {x} but {y}," said {B}.',
    )


def giving(t: Teller) -> None:
    """An indirect object with both names in view; the thing v is eaten or handed over for good."""
    t.phenomena.add("ioi")
    cast.thing(t, "v", E.SNACKS, E.FOOD_LOOKS)
    giver, taker = ("A", "B") if t.index(2) else ("B", "A")
    where = "(sat (under a tree|on a wall|in the grass|down)|stopped to rest|grew hungry|(got|became) tired|waited (there|a while)|took a (short|little) break)"
    t.one(
        f"when {{AB}} {where}, {{{giver}}} gave {{v.a}} to {{{taker}}}.",
        f"{{AB}} {where}. {{{giver}}} (gave|handed|passed) {{v.a}} to {{{taker}}}.",
        f"after {{AB}} {where}, {{{giver}}} (handed|offered|passed) {{v.a}} to {{{taker}}}.",
        f"while {{AB}} rested, {{{giver}}} (took|pulled) {{v.a}} out of {{{giver}.his}} (bag|pocket) and gave it to {{{taker}}}.",
    )
    t.one(
        f'"thank you, {{{giver}}}," said {{{taker}}} (and ate it|with a smile|happily|).',
        f"{{{taker}}} (ate it|took a bite) and {SMILED}.",
        f"{{{taker}}} thanked {{{giver.upper()}.him}} and ate it (slowly|quickly|all up|in the sun).",
        f"because {{{taker}}} was hungry, {{{taker}.he}} ate it {AT_ONCE}.",
        f'"this {{v}} is (so|very|really) (good|tasty|sweet|yummy)," said {{{taker}}}.',
    )  # fmt: skip


def sighting(t: Teller) -> None:
    """An animal passes by."""
    cast.animal(t, "Z", E.SEEN)
    spot = "(under a bush|on a (rock|log|wall|fence|roof)|behind a tree|near the (water|gate|path|road)|in the (grass|leaves|mud))"
    act = "(slept|hid|sat still|ate a leaf|made a funny noise|watched {them}|washed {Z.his} face|looked for food|ran in circles)"
    t.one(
        f"{{Z.a}} {act} {spot}.",
        f'"look, {{Z.a}}!" {CRIED} {{B}}. {{Z.the}} {act}.',
        f"{{A}} (saw|spotted|noticed) {{Z.a}} {spot}. {{Z.the}} looked at {{A.him}} and {RANOFF}.",
        f"{{Z.a}} (came|ran|hopped|crept) out of the (grass|leaves|shadows|bushes), and {{B}} {SMILED}.",
    )


RANOFF = "(ran off|went away|hid again|made a (soft|funny|loud) (noise|sound)|moved on)"


def song(t: Teller) -> None:
    """Some play or talk on the way."""
    t.one(
        f"{{AB}} played {GAME} for a (while|time|bit), and {{B}} (won|lost) (twice|three times|once|every time).",
        f"{{B}} sang a (funny|silly|short|happy|slow) song about a {{q}} and a {{r}}, and {{A}} {SMILED}.",
        f"{{A}} told {{B}} a (story|joke|secret) about a {{q}} and a {{r}}.",
        f'"what is your favorite (color|animal|food|day|book|game)?" asked {{B}}. {{A}} thought {VERY} hard before {{A.he}} answered.',
        f"on the way, {{AB}} talked about (school|stars|dragons|dinosaurs|the sea|lunch|trains|ghosts|bugs) and (pirates|birds|cakes|kites|snow|boats|giants|the moon).",
        f"{{B}} (jumped|hopped|danced) over a (puddle|log|stone|stick|crack), and {{A}} (jumped|hopped|danced) after {{B.him}}.",
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
        f"{{A}} and {{B}} {WALKED} home (together|hand in hand|side by side), and both of {{them}} were {GLAD}.",
        f'that (night|evening), {{A}} told {{M.my}} (all about it|the whole story|about {{B}}). "what a {NICE} day," said {{M}}.',
        f"{{A}} {SMILED} at {{B}}, and {{B}} {SMILED} back. it had been a (good|great|long|strange|lovely) day.",
        f"before bed, {{A}} thought of {{B}} and {SMILED}. {{A.He}} was {VERY} {GLAD}, and soon {{A.he}} was asleep.",
        f"when the (sun|light) went down, {{AB}} said (goodbye|good night) and {WALKED} home. {{they}} were tired but {GLAD}.",
        f'"you are a (true|good|great|real) friend, {{B}}," said {{A}}. {{B}} {SMILED} and {HUG.replace("{0}", "{A.him}")}.',
        f"{{A}} and {{B}} stayed (good|best|close) friends (for a long time|for years|forever|ever after).",
        f"{{M}} made (cocoa|soup|tea|pancakes|lemonade) for {{A}} and {{B}}, and {{they}} told {{M.him}} everything.",
        f"{{A}} was only a (small|little|young) {{A.child}}, but that day {{A.he}} felt (ten feet tall|very big|as brave as a lion|like a (giant|hero|star)).",
        f"and so {{A}} and {{B}} (went to bed|fell asleep|ended the day) {GLAD}. the end.",
    )  # fmt: skip
