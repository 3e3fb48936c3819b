# ruff: noqa: E501  (a template or a word list is read as one line)
"""Plots at home: a storm, a birthday cake, a noise in the night."""

from slms.data.stories import cast
from slms.data.stories import entities as E
from slms.data.stories.discourse import counting, detour, ending, giving, travel
from slms.data.stories.engine import Teller
from slms.data.stories.template import pieces


def storm_cast(t: Teller) -> None:
    cast.place(t)
    cast.toy(t, "o")
    cast.spot(t, "h", True)
    cast.animal(t, "D", [*E.PETS, "dog", "cat"])


def storm(t: Teller) -> None:
    """Rain drives the children home; the light goes out; they find the lamp and the storm passes."""
    t.phenomena.update(("cause", "place"))
    t.paragraph()
    travel(t)
    t.one(
        "{A} had/verb.action {o.full} with {A.him}, and {B} had/verb.action {B.his} (dog|coat|bag|lunch|hat).",
        "{AB} played $game and took turns with {o.full}.",
        "{A} showed {B} {A.his} {o.lookn}, and {they} played until (noon|lunch|the bells rang|four).",
    )
    detour(t, 0.7)
    t.one(
        "then the sky (grew|turned|became) (dark|gray|black), and a (cold|strong|wild) wind (shook the trees|blew leaves around|pulled at {A.s} hair).",
        "but soon (big|dark|black|heavy) clouds (came|rolled) over the (hills|trees|roofs), and the birds (stopped singing|were quiet|flew away).",
        '"I felt a drop/noun.nature," $said {B}. (then|a minute later) it (rained|poured) (hard|so hard that/conj {they} could not see the road).',
    )
    t.paragraph()
    t.one(
        '"a storm!" $cried {A}. "run home, {B}!" ^{they} $ran (down the road|through the puddles|over the wet grass) (hand in hand|as fast as {they} could).',
        "{A} took {B} by the hand, and {they} $ran to {A.s} house (without looking back|through the rain|as fast as the wind).",
        "because it was (raining|pouring), {AB} $ran to {A.s} house. {their} shoes were full of (water|mud).",
    )
    t.one(
        "{M} gave {them} (dry|warm|clean) (socks|towels|sweaters|blankets). {A} put {o.the} {h.full} to dry.",
        "inside, {A} left/verb.action {o.full} {h}, and {M} (hung|put) {their} wet coats (by the fire|near the stove|in the hall).",
        "{M} (opened the door|let {them} in) and (laughed|shook {M.his} head). {A} laid {o.the} {h.full}.",
    )
    t.one(
        "{D.the} (hid|was hiding) under (a|the|{A.s}) (bed|chair|blanket|table|coat) because the (thunder|wind|storm|noise) had (frightened|scared|alarmed|worried) {D.him}.",
        "(boom|crash|bang)! the thunder was so loud that/conj {B} (jumped|dropped {B.his} cup|covered/verb.action {B.his} ears). {D.the} hid behind {A}.",
        "the thunder (rolled|growled) like a (lion|bear|drum|giant|train|wolf) (over the roof|far away|in the hills|outside|above {them}), and {B} was $very $scared.",
    )
    t.one(
        "$suddenly all the lights went out. it was (very|so|quite) dark, and {B} could not see ({A}|{B.his} own (hand|feet)|{o.the}|the door|the stairs).",
        "then the lamp (in the hall|near {A}|on the wall|over {B}|by the window) (went out|blinked and went out), and {A.s} (house|room|street|kitchen) was (dark|black as a cave|still/adj.quality and dark|as dark as a hole).",
    )
    t.paragraph()
    t.one(
        '"do not be $scared," $said {A}. {A.He} (felt|found) {A.his} way to the (kitchen|drawer|shelf|cupboard) and (lit|brought) a (candle|lantern).',
        "{M} lit (two|three|four|five|six|seven) (white|yellow|big|small|long|short|red) candles (for {A} and {B}|one by one|in the kitchen|and sat down), and their light (danced|moved|shone) on (the (wall|walls|ceiling|floor|table)|{A.s} (face|hair|nose)). now it was not dark but bright.",
        '"hold my hand, {B}," $whispered {A}. together {they} (found|got) the (old|big|small) (lantern|candle|torch) on the (shelf|table|floor).',
    )
    act = t.index(4)
    if act == 0:
        giving(t)
    elif act == 1:
        t.one(
            "{A} made (shadow animals|animals out of shadows) on the wall: first a (rabbit|dog|bird|fox), then a (snail|goose|wolf|swan), and {B} $smiled.",
            "{M} told {them} (a story|an old story) about a (giant|princess|whale|pirate|queen) who lived in a (cloud|castle|cave|tower).",
        )
    elif act == 2:
        t.one(
            "{AB} counted after each flash: one, two, three! the storm was (going|moving) away, (little by little|mile by mile).",
            '"when you see the flash, count," $said {M}. {B} counted to (five|eight|ten|seven), and {A} counted to (nine|six|four|twelve).',
        )
    else:
        counting(t)
    t.one(
        '"where {o.is} my {o}?" asked {A}. {B} found {o.obj} {h}, where {A} had (left/verb.action|put) {o.obj}. {o.it} {o.was} dry again.',
        "{A} went to get {o.the}. {o.it} {o.was} still {h.full}, dry and (warm|clean|safe).",
    )
    t.one(
        "(at last|in the end|an hour later) the rain stopped, and {A} opened the (window|door|curtain). there was a rainbow over {p.the}!",
        "after the storm the air (in the street|near the house|over {p.the}|outside) was (cool|clean|fresh|sweet), and the (puddles|streets|leaves|roofs) (shone|were bright) in the (sun|moonlight|last light).",
        "then it was quiet. the (moon|sun|evening star) came out (over {p.the}|behind a cloud|at last), and {D.the} (came out|stopped shaking|ran to {A}|went to {B}).",
    )
    t.one(
        "{B} was not $scared any more because {A} had (stayed with|been near|sat beside) {B.him}.",
        '"I was $scared," $said {B}. "but you were $brave, {A}."',
        "{B} $smiled. storms were (loud|wild|dark), but it was $nice to be inside with {A}.",
        '"can we have (another|a second) storm (tomorrow|next week|on $day)?" asked {B}, and {M} $smiled.',
    )
    ending(t)


CAKES = "chocolate lemon honey carrot apple berry banana cherry strawberry plum".split()


def cake_cast(t: Teller) -> None:
    t.bound["k"] = pieces(f"{t.pick(CAKES)} cake")
    cast.thing(t, "o", E.SMALL_TOYS)
    cast.animal(t, "D", ["dog", "cat", "puppy", "kitten", "goat", "parrot", "pony"])
    cast.spot(t, "h", True)
    t.state["guest"] = t.index(2)


def cake(t: Teller) -> None:
    """A birthday cake is baked, spoiled by an animal, and put right; a gift waits at h."""
    t.phenomena.update(("cause", "counting", "place"))
    t.paragraph()
    t.one(
        "{B} would be (six|seven|five|eight) on $day, and {A} wanted to (make|bake) a {k} for {B.him}.",
        "it was {B.s} birthday. {A} asked {M} to help {A.him} (bake|make) a {k}.",
        '"tomorrow is {B.s} birthday," $said {A}. "can we (make|bake) a {k}, {M}?" {M} $smiled and (nodded|said yes).',
    )
    t.one(
        "{A} also (bought|made|found) {o.a} for {B} and (hid|put) {o.the} {h.full}.",
        "there was a gift too: {o.a}, (wrapped in (blue|red|green|yellow|silver) paper/noun.thing|in a small bag|tied with a (ribbon|string)). {A} hid {o.the} {h.full}.",
        "{A} had saved {A.his} coins and bought {o.a}. {A.He} (hid|kept) {o.the} {h.full}, (where {B} would not look|out of sight).",
    )
    n, m = 1 + t.index(5), 1 + t.index(5)
    cast.count(t, "n", "egg", n)
    cast.count(t, "m", "egg", m)
    cast.count(t, "s", "egg", n + m)
    t.one(
        "{A} put {n} (in|into) the bowl, and {M} added {m.n} more. that made {s}.",
        '"we need {s}," $said {M}. {A} had/verb.action {n}, so/conj {A.he} went to the (hens|barn|shop|market) for {m.n} more.',
        'there {n.was} {n} in the (basket|bowl|box) and {m} on the (shelf|table|plate). "{n.n} and {m.n} make {s.n}," {A} told {M} (proudly|happily|after some thought|and broke them all).',
    )
    t.one(
        "then came the (flour|sugar|butter) and the (milk|honey|cream), and {A} (stirred|mixed) (it all|and sang|and counted to twenty|and tasted) until {A.his} (arm|hand|back/noun.body) (hurt|was tired).",
        "{A} poured in the (milk|cream|honey), {M} added the (flour|sugar|butter), and soon there was flour on {A.his} (nose|chin|shoes|hair|ears).",
        "{M} (stirred|mixed) the (flour|butter|sugar) and the (honey|milk|cream) while {A} licked the (spoon|bowl).",
    )
    t.one(
        "{M} put it in the oven, and (soon|later|after an hour|while {A} (sang|waited|slept)) it came out (golden|brown|tall|round) and (hot|soft|sweet). {A} (put|set) it (by the window|on the table|on a plate|on the shelf) to cool.",
        "when it was done, the (kitchen|house|room|street) smelled (sweet|wonderful|lovely|good|like heaven). (it was still hot|the cake was not cold but hot|it was hot), so/conj {A} (had to wait|sat down and waited|sang a song and waited|counted to (ten|twenty|thirty) twice|(read|drew|played) until it was cool).",
    )
    t.paragraph()
    t.one(
        "while {A} was (away|outside|upstairs), {D.a} (jumped up|climbed up|came in) and (ate|licked|bit) one side of the cake!",
        "(oh no|oh dear)! {D.the} pulled the (cloth|plate), and the {k} fell on the floor with a (splat|bump|thud)!",
        "{A} (turned around|looked away) for just a (minute|moment). (splat|bump|thud)! {D.a} had (knocked|pushed) the cake off the table!",
    )
    t.one(
        "because the cake was (ruined|spoiled), {A} was $very $sad. {A.He} sat (on the floor|by the stove|down) and (cried|hid {A.his} face).",
        '"bad {D}!" $cried {A}. {A.He} was $cross because of the cake, and {D.the} (hid|ran off|looked sorry).',
        "{A} felt $sad and a (little|bit/noun.thing) $cross. {D.the} looked (up|away) and (licked|hid) {D.his} (nose|mouth|feet).",
        "{A} looked at the (crumbs|mess) and (began to cry|could not speak). the party was at (three|four|two|five)!",
    )
    fix = t.index(3)
    if fix == 0:
        t.one(
            '"we can (fix|mend|save) it," $said {M}. {A} cut the bad (side|part) away, and {M.he} covered/verb.action the rest/noun.thing with (cream|berries|sugar|jam|nuts|honey).',
            "{M} had/verb.action an idea. they cut the good part into (stars|hearts|squares|moons) and put (cream|jam|berries|honey) on top.",
        )
    elif fix == 1:
        t.one(
            "there was no time for a second cake, so/conj {A} made (pancakes|cupcakes|muffins|cookies) and (stacked|piled) them up like a tower.",
            "{A} took (bread|buns|muffins|biscuits), jam and (cream|berries), and built a cake of another kind/noun.thing, tall and (funny|crooked|sweet).",
        )
    else:
        cast.grown(t)
        t.one(
            "{W.the} next door heard {A} and came (over|in). {W.he} gave {A} (eggs|flour|a bowl of berries|some cream), and they baked (again|a new cake).",
            'a neighbor, {W.a}, (heard|came). "I will help," $said {W.the}, and {W.he} gave {A} a (big|small|fresh|warm) (pie|cake) from {W.his} own kitchen.',
        )
    t.paragraph()
    t.one(
        'when {B} came, everyone sang. {B} (blew|puffed) and all the candles went out. "what did you wish for?" asked {A}, but {B} only $smiled.',
        '"happy birthday!" $cried {A} when {B} (came in|opened the door). {B} (looked at|tasted) the cake and $smiled.',
        "{B} came at (three|four|two|five) in {B.his} (best|new|blue|red) (shirt|hat|shoes). {A} told {B.him} about {D.the}, and {B} $smiled until {B.he} cried.",
    )
    t.one(
        "then {A} went to get the gift. {o.it} {o.was} still {h.full}. {A} gave {o.the} to {B}, who was $very $glad.",
        "{A} took {o.full} from its place {h} and gave {o.obj} to {B}. {B} $hugA.",
        '"look {h}," $said {A}. {B} looked there and found {o.a}! "thank you, {A}!" $cried {B}.',
    )
    t.one(
        "even {D.the} got a (small|tiny|little) (piece|bite/noun.food), because it was a day for (sharing|everyone|cake).",
        "{B} was $very $glad because {A} had worked so hard for {B.him}.",
        '"it is the (best|funniest|sweetest) cake I ever had," $said {B} with a full mouth.',
        "{M} cut the cake into (eight|six|ten|twelve|nine) pieces, and (nobody|no one) left/verb.motion hungry.",
    )
    ending(t)


def night_cast(t: Teller) -> None:
    cast.spot(t, "h", True)
    cast.spot(t, "i", True)
    t.state["cause"] = t.index(3)
    cast.animal(t, "D", [*E.YOUNG[:2], "mouse", "owl", "hedgehog", "squirrel", "bat", "cat", "frog", "cricket", "moth"])
    cast.toy(t, "o")


def night(t: Teller) -> None:
    """A sound in the dark frightens the hero, who goes to look and finds D at h."""
    t.phenomena.update(("cause", "place"))
    t.paragraph()
    t.one(
        "$when, {B} came to (stay|sleep) at {A.s} house (for the night|because {B.his} parents were away). {A} gave {B.him} the (soft|big|warm|small) bed near the (window|door|wall).",
        "{B} was staying with {A} for (two|three|four) nights. {they} put two (beds|blankets|pillows) side by side (in the attic|upstairs|under the window).",
        "$when, {AB} (built|made) a tent out of (sheets|blankets|chairs and sheets) in {A.s} room, and {they} wanted to sleep in it.",
    )
    t.one(
        "before bed, {A} put {o.full} {i}, and {B} $smiled.",
        "{A} set {o.full} {i.full}, (as {A.he} did every night|so/conj that/conj {o.it} could sleep too|where {A.he} could see {o.obj}).",
    )
    detour(t, 0.8)
    t.one(
        "{M} (read a story|sang a song|told a joke), (kissed|hugged) {them} both and turned off the light.",
        '"good night, {A}. good night, {B}," $said {M}, and (shut|closed) the door (softly|gently|quietly).',
        "the (moon|stars) came up, and the (house|street|village) was still/adj.quality.",
    )
    t.paragraph()
    t.one(
        '(tap, tap, tap|scratch, scratch|bump, bump|creak, creak). $suddenly {B} sat up. "what was that?" {B.he} $whispered.',
        "in the (middle|dark/noun.time) of the night, {A} heard a (noise|sound): (tap, tap|scratch, scratch|bump|creak). it came from (the hall|downstairs|the kitchen|the next room).",
        '{B} (woke|shook) {A}. "(listen|wake up), {A}! (something|someone) is in the (house|kitchen|hall|next room)!"',
    )
    t.one(
        "{B} was $scared because it was dark and the sound was (strange|close|near/adj.quality).",
        '"it is a (ghost|monster|robber|dragon|witch|bear)," $whispered {B}. {B.He} pulled the blanket over {B.his} head.',
        "{A} felt (cold|small|$scared), and {A.his} heart beat (fast|loud|like a drum).",
        '"I am $scared," $whispered {B}. "so am I," $said {A}. "but I want to know."',
    )
    t.one(
        "{A} took (a|the) (lamp|candle|torch) in one hand and {B.s} hand in the other.",
        "$slowly, {A} got out of bed. the floor was cold under {A.his} feet. {B} came (behind|after) {A.him}.",
        '"stay behind me," $said {A}. {A.He} took (a pillow|a broom|an umbrella|a spoon) and opened the door.',
    )
    t.one(
        "{A} and {B} looked {i.full}. there {o.was} only {o.full}, (still/adj.quality|quiet) in the (dark/noun.time|moonlight).",
        "something (stood|moved|was) in the dark/noun.time, and {B} gasped. but {o.it} {o.was} only {o.the} {i}.",
    )
    t.one(
        "(tap, tap|scratch|bump|creak)! there it was again. the sound came from {h.thefull}.",
        "{they} stood (still/adj.quality|close together) and (listened|held {their} breath). yes, the sound came from {h.thefull}.",
    )
    t.paragraph()
    t.one(
        "{A} held up the light, and there, {h}, was {D.a}!",
        "{A} counted to three and looked {h.full}. two (round|bright|shiny|big) eyes looked back. it was {D.a}!",
        "{B} $cried out, but {A} began to laugh. {h} sat {D.a}, (no bigger than a shoe|as $scared as {they} were).",
    )
    cause = t.state["cause"]
    if cause == 0:
        t.one(
            "{D.the} was eating the (bread|cheese|crumbs|cookies|nuts) from (supper|lunch|the party). {D.he} was not bad, only hungry.",
            "{D.he} had (found|stolen/verb.action) a (nut|cookie|biscuit|piece of cheese) and was $very busy with it.",
        )
    elif cause == 1:
        t.one(
            "{D.the} had come in (because it was cold|out of the rain|through the window) and could not get out.",
            "the (door|window) was shut/adj.quality, and {D.the} could not find {D.his} way (home|out).",
        )
    else:
        t.one(
            "{D.his} foot was caught in a (string|bag|sock|net), and {D.he} could not get (free|loose).",
            "{D.the} was stuck in a (jar|boot|paper bag|cup), and each time {D.he} moved, it went (bump|tap|clunk).",
        )
    t.one(
        '"you (poor|silly|little) thing," $said {B}. {A} opened the (window|door), and {D.the} (ran|slipped|went) out into the night.',
        "$slowly, {A} picked {D.him} up and carried {D.him} (outside|to the garden|to the door). {B} gave {D.him} a (crumb|nut|leaf|bit/noun.thing of bread).",
        "{B} was not $scared any more. {B.He} helped {A} make a (bed|nest) for {D.him} in an old (box|hat|basket|boot).",
    )
    t.one(
        '"we were $scared of {D.a}," $said {B}, and {they} $smiled until {M} woke up.',
        "because {A} had (looked|been brave), {they} now knew that/conj there was no (ghost|monster|dragon|witch|robber).",
        '{M} came with a lamp. "why are you (awake|up|out of bed)?" {M.he} asked. {A} told {M.him} about {D.the}.',
        "in the morning, {A} told {M} about {D.the}, and {M} $smiled (into {M.his} tea|for a long time).",
    )
    ending(t)


PLOTS = {"storm": (storm_cast, storm), "cake": (cake_cast, cake), "night": (night_cast, night)}
