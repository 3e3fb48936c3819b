# ruff: noqa: E501  (a template or a word list is read as one line)
"""Plots about getting on with others: sharing, a new child, a broken thing."""

from slms.data.stories import cast
from slms.data.stories import entities as E
from slms.data.stories.discourse import detour, ending, travel
from slms.data.stories.engine import Teller


def sharing_cast(t: Teller) -> None:
    cast.place(t)
    cast.toy(t, "o")
    cast.thing(t, "u", E.SNACKS, E.FOOD_LOOKS)
    t.state["first"] = t.index(2)


def sharing(t: Teller) -> None:
    """A will not lend o, loses B's company, needs something of B, and both learn to share."""
    t.phenomena.update(("ioi", "cause", "place"))
    t.paragraph()
    travel(t)
    t.one(
        "{A} had brought {o.a}, and {B} had brought {u.a} (in a bag|for later|from home/noun.place).",
        "{A} had/verb.action {o.a} in {A.his} (arms|hands|bag), and in {B.s} (bag|pocket|basket) there was {u.a}.",
        "{B} had/verb.action (only|just) {u.a}, but {A} had/verb.action {o.full}, which {M} had (made|bought|found) for {A.him}.",
    )
    detour(t, 0.9)
    t.one(
        '"may I (try|have|hold|see) {o.the}?" asked {B} (with a smile/noun.body|softly|after a while/noun.time).',
        '"{o.this} {o.is} (so|very|really) (pretty|nice|lovely|special|fine)! can I play with {o.obj} too, {A}?" asked {B}.',
        "{B} looked at {o.the} and (asked for a turn/noun.thing|held out a hand|asked if {B.he} could try).",
    )
    t.one(
        '"no/intj.speech, {o.it} {o.is} mine!" $said {A} and (held|hugged) {o.obj} (tight|close).',
        '"not now," $said {A}. {A.He} turned away and played (alone|by {A.self}).',
        "{A} (shook {A.his} head|said no/intj.speech|frowned). {A.He} did not want to share {o.the} with (anyone|{B}).",
        '"you may (break|lose|drop) {o.obj}," $said {A}, and {A.he} put {o.obj} behind {A.his} back/noun.body.',
    )
    t.paragraph()
    t.one(
        "{B} was $sad because {A} would not share. {B.He} $walked away and sat (under a tree|on a rock|by the gate|on a bench) alone.",
        "{B.s} face fell. {B.He} felt $sad, and {B.he} went to sit (under a tree|on a log|by the wall|in the shade).",
        '"then I will play (alone|by myself|with the ants)," $said {B}. {B.He} was $cross and $sad.',
    )
    t.one(
        "{A} played with {o.the} for (a while/noun.time|an hour|a long time), but it was (dull|no fun|not much fun) (alone|without {B}). {A} had nobody to (laugh|talk|play|race|sing) with.",
        "(at first|for a while/noun.time|for an hour) {A} was $glad. then {A.he} grew (bored|lonely|tired), because {o.the} could not (talk|laugh|sing|run).",
        "{A} looked at {o.the}. {o.it} {o.was} still {o.look}, but (somehow|now) {o.it} {o.was} not so much fun.",
    )
    t.one(
        "then {A} grew hungry. {A.his} (stomach|tummy) made a (loud|funny|long) noise, and {A.he} had nothing to eat.",
        "soon {A} was hungry and (cold|tired). {A.He} had forgotten {A.his} (lunch|food|bag|basket) at home.",
        "after an hour, {A} wanted (a snack|something to eat|lunch), but {A.his} (bag|basket) was empty, not full.",
    )
    first = t.state["first"]
    t.paragraph()
    if first == 0:
        t.one(
            "{B} saw this. {B.He} (broke|cut|tore) {u.full} in two and gave one half to {A}.",
            'although {B} was still $sad, {B.he} (came over|stood up|came back) and gave half of {u.the} to {A}. "here," {B.he} said.',
            "{B} came back and (held out|showed) {u.full}. {B.He} gave the (bigger|larger|best) half to {A}, not the small one/pron.function.",
        )
        t.one(
            '"why (are you so kind|do you share with me)?" asked {A}. "because you are my friend," $said {B}.',
            "{A} turned red. {A.He} felt (bad|ashamed|sorry) because {A.he} had not shared {o.the}.",
            "{A} ate $slowly and thought about {o.the}. {A.He} had not been (fair|kind|nice).",
        )
        t.one(
            'so/conj {A} gave {o.the} to {B}. "(I am sorry|you can play first|take a long turn/noun.thing)," {A.he} said.',
            '"I am sorry," $said {A}. {A.He} (put {o.the} in {B.s} hands|gave {B} {o.the}) and $smiled.',
        )
    else:
        t.one(
            '{A} went to {B} and (sat down|stood) beside {B.him}. "I am sorry," {A.he} said, and {A.he} gave {o.the} to {B}.',
            '{A} thought for a while/noun.time and then $walked over. "I was (mean|unfair|wrong)," {A.he} said and gave {o.full} to {B}.',
        )
        t.one(
            "{B} $smiled. {B.He} (broke|cut) {u.full} in two and gave half of it to {A}.",
            '"(thank you|that is all right)," $said {B}. "you must be hungry." {B.He} gave {A} half of {u.the}.',
        )
    t.one(
        "then {AB} sat side by side, ate {u.the} and (took turns|played) with {o.the} (all day|until dark/noun.time|for hours).",
        "{they} (took turns|played) with {o.full} until the sun was (low|red|gone). it was not dull but fun.",
        "{B} (counted|sang) while {A} played with {o.the}, and then {A} (counted|sang) while {B} played.",
    )
    t.one(
        "{A} found that/conj {o.the} {o.was} more fun with {B}.",
        "{A} was $glad because sharing had made {B} $glad.",
        '"half of {u.a} and a turn/noun.thing with {o.a} make a whole friend," $said {A}, and {B} $smiled.',
        "{A} never forgot how $sad {B} had looked (that day|there).",
    )
    ending(t)


def new_cast(t: Teller) -> None:
    t.state["stranger"] = True
    cast.place(t, "p", ["park", "playground", "school", "library", "farm", "garden", "beach", "market", "square"])
    cast.thing(t, "o", E.SMALL_TOYS)
    cast.trait(t, "B")
    t.state["gift"] = t.index(3)


def new_friend(t: Teller) -> None:
    """A new child sits alone; A finds out why, helps, and by the end the child has a friend."""
    t.phenomena.update(("cause", "place"))
    t.paragraph()
    t.one(
        "$when, a new {B.child} came {p.to}. {B.his} name was {B}, and {B.he} did not (know|talk to) (anyone|anybody).",
        "a family had moved into the (red|white|old|blue|empty) house (on the hill|next door|by the mill|near the bridge). $when, {A} saw their {B.child} {p.at}. {B.his} name was {B}.",
        "$when, {A} went {p.to} and saw a {B.child} that/pron.function {A.he} did not know. {B.He} was called {B}.",
    )
    t.one(
        "{B} sat (alone|by {B.self}) (near the gate|under a tree|on the steps|on a wall) and held {o.a} (tight|in {B.his} arms|on {B.his} knees).",
        "{B} stood (far from|away from) the (others|other/adj.quality children) with {o.a} in {B.his} (hand|bag|arms) and looked at {B.his} (shoes|feet).",
        "the (others|other/adj.quality children) played $game, but {B} only (watched|looked on). {B.He} had/verb.action {o.a} with {B.him}.",
    )
    t.one(
        "{B} was $sad because {B.he} (missed|had left/verb.action) {B.his} old (friends|home/noun.place|school|street).",
        "because everything was new, {B} was $very (shy|$scared) and did not say a word.",
        "nobody (talked to|played with|looked at) {B}, and so {B.he} felt $very (lonely|$sad).",
    )
    t.paragraph()
    t.one(
        'a (big|tall|loud) child (took|pulled away) {o.the} and $ran off with {o.obj}. "give {o.obj} back!" $cried {A}.',
        "a gust of wind (took|pulled) {B.s} (hat|paper/noun.thing|scarf|drawing) and blew it into a (tree|puddle|pond|bush). the others (laughed|pointed), but {A} did not.",
        "{B} tried to (climb up|join|run), but {B.he} (fell|slipped) and {B.his} knee was (cut|hurt). {A} saw it.",
        "{A} thought of {A.his} own first day. {A.He} had been (alone|shy|$scared) too, and (nobody|no one) had helped {A.him}.",
    )
    t.one(
        '{A} $walked (over|up) to {B.him}. "(hello|hi), my name is {A}. what is your name?" {A.he} asked. "{B}," $whispered the {B.child}.',
        '{A} sat down (next to|beside|near) {B}. "I like/verb.feeling your {o}," {A.he} said. {B} looked up.',
        '"do you want to play (with me|$game)?" asked {A}. {B} (nodded|shook {B.his} head|did not answer) at first.',
    )
    t.one(
        '"where (did you live before|are you from)?" asked {A}. "(by the sea|in the city|far away|in the hills|on a farm)," $said {B}.',
        '"is that your {o}?" asked {A}. "yes," $said {B}. "my (grandma|grandpa|old friend|aunt) gave {o.obj} to me."',
        "{A} told {B} about {p.the}: where the (best|biggest|tallest) (tree|slide|rock|wall) was, and who was (kind|funny|fast/adj.quality|strong).",
    )
    gift = t.state["gift"]
    t.paragraph()
    if gift == 0:
        cast.thing(t, "v", E.SNACKS, E.FOOD_LOOKS)
        t.phenomena.add("ioi")
        t.one(
            "{A} had/verb.action {v.a} in {A.his} (bag|pocket|lunch box). {A.He} broke it in two and gave half to {B}.",
            "when {AB} grew hungry, {A} gave {v.a} to {B}. {B} took a bite/noun.food and $smiled for the first time.",
        )
    elif gift == 1:
        t.one(
            "{B} showed {A} a (trick/noun.toy|dance/noun.toy|song|game) from {B.his} old (home/noun.place|school|street), and {A} tried it (again and again|too) until {A.he} could do it.",
            "{B} could (whistle|juggle|draw|jump|run) better than anyone {p.at}. {A} (clapped|asked {B.him} to teach {A.him}).",
        )
    else:
        t.one(
            "{they} (built|made) a (castle|house|tower|boat|bridge) out of (sticks|sand|stones|boxes|leaves). {A} worked on the left side and {B} on the right.",
            "{A} taught {B} $game, and {B} (won|was good at it) (at once|the second time|before long).",
        )
    detour(t, 0.9)
    t.one(
        "soon the (others|other/adj.quality children) came to (look|see|watch/verb.mind). {A} told them {B.s} name, and they all played (together|until dark/noun.time|$game).",
        '"can we play too?" asked the others. "ask {B}," $said {A}. {B} $smiled and said yes.',
        "one by one, the (others|other/adj.quality children) came over. first there were two, then (five|six|four), then (ten|nine|eight).",
    )
    t.one(
        "{B} was not $sad now but $glad, because {B.he} had/verb.action a friend.",
        "{B} did not feel alone any more. {B.He} felt $glad because {A} had (talked to|sat with|come to) {B.him}.",
        "when {B} went home, {B.he} told {B.his} (mother|father|parents) about {A}. they were $very $glad.",
        '"you can hold {o.the}," $said {B}. {B.He} gave {o.full} to {A} for (a minute|a while/noun.time|the night).',
    )
    ending(t)


def broken_cast(t: Teller) -> None:
    cast.thing(t, "o", "cup bowl vase plate jar lamp clock mirror teapot jug picture pot".split())
    cast.spot(t, "h", True)
    t.state["how"] = t.index(4)


def broken(t: Teller) -> None:
    """A breaks a dear thing, hides the pieces at h, feels bad, tells the truth, and it is mended."""
    t.phenomena.update(("cause", "place"))
    t.paragraph()
    t.one(
        "{M} had/verb.action {o.a}. it had belonged to {M.his} (mother|father|aunt|uncle), and {M.he} loved it (very much|dearly|more than gold/noun.thing).",
        "on the (shelf|table|piano|desk) in the (kitchen|hall|big room) stood {o.a}. it was (old|dear) and {M} was $very (careful with it|fond of it).",
        '"please do not (touch|play near) {o.full}," {M} had said (many times|more than once|again and again).',
    )
    t.one(
        "$when, {B} came over, and {AB} played $game (inside|in the hall|near the kitchen|in the big room).",
        "$when, {M} was (outside|in the garden|at the market), and {AB} were alone in the (kitchen|house|big room).",
        "it rained on $day, so/conj {AB} stayed inside and played $game.",
    )
    detour(t, 0.8)
    t.one(
        "{A} (threw|kicked) a (ball|shoe|pillow) to {B}, but it went too (high|far|fast). (crash|smash|crack)! {o.the} fell and broke.",
        "{A} (ran|jumped|turned) too fast and (hit|knocked) the (table|shelf) with {A.his} (arm|knee|foot|elbow). {o.the} fell (down|to the floor) and broke into (two|three|four|five|six|seven) pieces.",
        "{A} (only|just) wanted to (hold|see|clean|look at) {o.full}. but it was (heavy|smooth|wet), and it slipped out of {A.his} (hands|fingers) and broke.",
    )
    t.paragraph()
    t.one(
        '"oh no!" $cried {B}. "what will {M} say?" {A} (turned white|could not speak|shook all over).',
        "{A} was $very $scared because {M} (loved|was so fond of) {o.the}. {B} did not know what to (do|say).",
        '"it was not my fault," $said {A}, but {B} only looked at (the floor|the pieces|{A.him}).',
    )
    t.one(
        "$at_once, {A} (put|hid|pushed) the pieces {h.full} and said nothing.",
        '{A} picked up the pieces and hid them {h.full}. "do not tell," {A.he} $whispered to {B}.',
        "{A} swept the pieces up and put them {h}, where {M} would not (see|find) them.",
    )
    t.one(
        'when {M} came (back|in|home), {M.he} stopped. "where is {o.the}?" {M.he} asked. {A} (looked at {A.his} feet|said nothing|did not answer).',
        "at (supper|dinner|lunch), {A} could not (eat|swallow|look up). {A.his} (food|soup|bread) grew cold. {M} asked what was wrong.",
        'that (evening|night), {M} (saw|noticed) the empty place. "have you seen {o.the}?" {M.he} asked. "(no/intj.speech|maybe the wind took it|maybe the cat did it)," $said {A}.',
    )
    t.one(
        "{A} felt $sad because {A.he} had (lied|hidden the pieces|not told the truth). {A.his} (stomach|heart|head) hurt.",
        "the (secret|lie) was small, but it felt (big|heavy|like a stone). {A} could not (sleep|play|smile).",
        '{B} (took {A.his} hand|came close). "you should tell {M.him}," {B.he} $whispered. "it will feel better."',
    )
    t.paragraph()
    t.one(
        '$lastly, {A} $walked to {M}. "I broke {o.the}," {A.he} said. "the pieces are {h}. I am (so|very) sorry."',
        '{A} took {M} by the hand and showed {M.him} the pieces {h.full}. "I did it," {A.he} said and began to cry.',
        'then {A} (took|brought) the pieces that/pron.function were {h} to {M}. "it was me," {A.he} $whispered. "I was $scared."',
    )
    t.one(
        '{M} was $sad for a (moment|minute|while/noun.time). then {M.he} $hugA. "thank you for telling me the truth," {M.he} said.',
        '"I am sad about {o.the}," $said {M}. "but I am $proud because you told (me|the truth)."',
        '"{o.a} is only a thing," $said {M}. "(and|but) you, {A}, are more (dear|important) to me than {o.the}."',
    )
    how = t.state["how"]
    if how == 0:
        t.one(
            "together they (fixed|mended) {o.the} with glue, piece by piece. it was not (pretty|perfect) any more, but it was whole.",
            "{B} held the pieces while {A} put on the glue. (by|before) (night|supper|noon) {o.the} stood on its (shelf|table) again.",
        )
    elif how == 1:
        t.one(
            "{A} saved {A.his} coins for (five|six|seven|eight|three) weeks, and {B} helped. then {they} bought a new {o}, and {M} $smiled.",
            "{AB} made a new {o} out of (clay|wood|paper/noun.thing|tin). it was (crooked|heavy|funny|a bit/noun.thing small), and {M} (loved|liked) it even more.",
        )
    elif how == 2:
        t.one(
            "from the pieces {they} made a (star|flower|bird|fish|sun) and (put|hung) it on the wall. {M} said it was (better|prettier) than before.",
            "{A} and {B} glued the pieces on a (box|frame|flowerpot), and it shone (red and blue|like a rainbow|in the sun).",
        )
    else:
        t.one(
            "{M} told {them} that/conj, when {M.he} was (six|small|a child), {M.he} had broken/verb.action (a window|two chairs|a clock), and {they} $smiled.",
            "{A} (washed|dried|swept) for a week to make it (good|right), and {B} came to help on $day.",
        )
    t.one(
        "after that, {A} played $game outside, not inside.",
        "{A} felt (light/adj.quality|free|better) because the (secret|lie) was gone.",
        '"the truth was hard/adj.quality, but the lie was harder," {A} told {B} (later|that night|the next day|after supper).',
        "{B} was $glad that/conj {A} had been so (honest|brave).",
    )
    ending(t)


PLOTS = {"sharing": (sharing_cast, sharing), "new_friend": (new_cast, new_friend), "broken": (broken_cast, broken)}
