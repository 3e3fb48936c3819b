# ruff: noqa: E501  (a template or a word list is read as one line)
"""A plot about a race that is not won by the fastest."""

from slms.data.stories import cast
from slms.data.stories.discourse import detour, ending
from slms.data.stories.engine import Teller


def race_cast(t: Teller) -> None:
    cast.place(t, "p", "park beach meadow hill village farm lake school field".split())
    cast.toy(t, "o") if t.chance(0.4) else cast.thing(
        t, "o", ["crown", "bell", "kite", "drum", "book", "whistle", "hat"]
    )
    t.state["slip"] = t.index(3)
    he = t.pick(("she", "he"))
    cast.child(t, "C", he)


def race(t: Teller) -> None:
    """C boasts before a race; someone falls; A stops to help; the prize o ends in good hands."""
    t.phenomena.update(("cause", "opposites", "ioi"))
    t.paragraph()
    t.one(
        "$when, there was a big race/noun.motion {p.at}. the prize was {o.a}.",
        "every (year|spring|summer|autumn), the children had/verb.action a race/noun.motion {p.at}. this year the prize was {o.a}.",
        '"there is a race/noun.motion {p.at} on $day," $said {B}. "whoever wins gets {o.a}!"',
    )
    t.one(
        "{A} wanted to (win|run|try|have {o.obj}) (very much|badly|for {M}|more than anything), but {A.his} legs were (not long but short|not strong but weak|not fast/adj.quality but slow).",
        "{A} was not fast/adj.quality but slow. still, {A.he} (ran|practiced) every $morning with {B}, (up|around|over) the hill and back.",
        "{A} and {B} practiced for (two|three|four|five) weeks. {A} ran to the (mill|bridge|gate|well/noun.place), and {B} counted the (steps|seconds|minutes).",
    )
    t.one(
        '"I am fast/adj.quality and you are slow," {C} told {A}. "you will never (win|beat me)." {A} felt $sad.',
        '{C}, who was (tall|strong) and $very fast/adj.quality, laughed at {A}. "(a snail|a turtle|my grandma) is faster than you!" {C.he} said.',
        "{C} had won (twice|three times) before. {C.He} (showed off|looked down at the others) and said that/conj {C.he} would win again.",
    )
    t.one(
        '"do not listen to {C.him}," $whispered {B}. "just run."',
        '"run for fun," $said {M}, and {M.he} tied {A.s} (shoes|laces|scarf).',
        '"it does not matter who (wins|is first|gets {o.the})," $said {B}. {A} tried to (smile|believe it|believe {B.him}).',
    )
    detour(t, 0.85)
    t.paragraph()
    n = 2 + t.index(8)
    cast.count(t, "n", "child", n)
    t.one(
        "{n} stood at the line. (one, two, three, go|ready, steady, go)! they all ran. {C} was first, {B} was (second|third), and {A} was last.",
        "a (bell rang|whistle blew|flag fell), and {n} ran off (like the wind|in a cloud of dust). {C} was in front and {A} was far behind.",
        '"go!" $cried the (teacher|farmer|baker), and {n} began to run. {A} saw only {C.s} back/noun.body.',
    )
    t.one(
        "{A} ran (past|around) the (mill|well/noun.place|barn|pond), (over|across) the bridge and (up|down) the hill. {A.his} heart beat like a drum.",
        "the road went (up the hill|along the river|through the wood|past the barn), and {A} (kept on|ran at the same speed|did not stop).",
        "{A} passed one child at the (bridge|mill|barn|gate|pond) and (another|two more) (on the hill|by the (wall|wood|well/noun.place)). {B} (waved|was close behind|called {A.s} name).",
    )
    slip = t.state["slip"]
    cast.alias(t, "F", "C" if slip < 2 else "B")
    t.one(
        "$suddenly {F} (slipped|stepped) on a (wet|loose|round|sharp) stone and fell. {F.He} held {F.his} (knee|foot|leg) and cried.",
        "then, at the (corner|bridge|last hill), {F} (looked back|turned {F.his} head) and fell over a (root|stone|log|rope). {F.his} (knee|hand|foot) was hurt.",
    )
    t.one(
        "the others ran on, but {A} stopped because {F} was hurt.",
        "{A} could (see|hear) the (end|line|crowd). {A.He} could win now! but {F} was hurt, so/conj {A.he} (turned|went) back.",
        "(nobody|no one) stopped (for {F}|to help|to look). then {A} came (along|by|around the corner), and {A.he} thought not of {o.the} but of {F}.",
    )
    t.one(
        '"(take|give me) your hand, {F}," $said {A}. {A.He} put {A.his} arm around {F}, and they walked on together.',
        '"can you (stand|walk), {F}?" asked {A}. {A.He} tied {A.his} scarf around {F.his} leg and helped {F.him} up.',
        '"why do you help me?" asked {F}. "because you (fell|are hurt|need it)," $said {A}.',
    )
    t.paragraph()
    t.one(
        "{A} and {F} came in last, (arm in arm|side by side|slowly), but everyone (clapped|stood up and clapped|sang).",
        "when {A} reached the line with {F}, it was late, not early. (the whole (crowd|village|school)|{M}|everyone) (clapped|sang|waved|shouted {A.s} name|jumped for joy).",
        "step/noun.motion by step/noun.motion, {A} and {F} came to the end. the crowd was quiet, then loud.",
    )
    if t.index(2) == 0:
        t.one(
            'the (teacher|farmer|baker|gardener) (thought for a moment|looked at {A} for a while/noun.time|held up {o.the}) and said, "{o.the} (should go|goes|belongs) to {A}, who has the (biggest|best|warmest) heart."',
            'the (winner|first child) looked at {o.full} and then at {A}. ("you should have {o.obj}."|"take {o.obj}, {A}.") ^the (winner|child) gave {o.the} to {A}.',
        )
    else:
        t.one(
            "{A} did not get {o.the}, but {M} gave {A.him} (a medal of paper/noun.thing|a paper star|a crown of leaves|a bunch of flowers) and $hugA.",
            'someone else got {o.full}. {A} did not mind. {B} gave {A.him} (an apple|a flower|a paper star|a big hug) and said, "you won more than a prize."',
        )
    t.one(
        '"I was (mean|wrong|rude)," $said {C} to {A}. "I am sorry." they shook hands.',
        "{C} was not proud now but (quiet|kind|sorry). {C.He} gave {A} (a cookie|an apple|half a bun|a hug|{C.his} cap).",
        '{C} came to {A} and {B}. "can I run with you (tomorrow|next week|on $day)?" {C.he} asked, and {A} said yes.',
    )
    t.one(
        "{A} was $very $glad because {A.he} had found a friend.",
        "{A.s} legs were weak, but {A.his} heart was strong.",
        '"you were last," $said {M}. "and I am $very $proud of you."',
        "{B} told everyone what {A} had done.",
    )
    ending(t)


PLOTS = {"race": (race_cast, race)}
