# ruff: noqa: E501  (a template or a word list is read as one line)
"""Plots about things and friends that go missing: a lost toy, a lost way, a treasure."""

from slms.data.stories import cast
from slms.data.stories import entities as E
from slms.data.stories.discourse import detour, ending, travel
from slms.data.stories.engine import Teller


def lost_toy_cast(t: Teller) -> None:
    t.state["indoors"] = t.index(3) == 0
    cast.toy(t, "o")
    cast.place(t)
    for role in "hij":
        cast.spot(t, role, t.state["indoors"])


def lost_toy(t: Teller) -> None:
    """A toy is put down at h, forgotten, missed, hunted for at i and j, and found at h."""
    t.phenomena.update(("place", "cause"))
    t.paragraph()
    t.one(
        "{A} had/verb.action {o.a}. {M} had given {o.obj} to {A.him} (for {A.his} birthday|in $season|on $day|last year), and {A.he} took {o.obj} everywhere.",
        "of all {A.his} things, {A} liked {o.full} (best|most). {o.it} {o.was} a (gift|present) from {M.my}.",
        "{A} had $loved {o.full} (since {A.he} was a baby|for a long time|for as long as {A.he} could remember).",
        "the {o} that/pron.function {A} liked most {o.was} {o.look}, and {A.he} had found {o.obj} (at the market|on the beach|in an old trunk|in the attic).",
    )
    if t.state["indoors"]:
        t.one(
            "$when, {B} came to (play|visit|stay), and {they} played $game in {A.s} (house|room|kitchen).",
            "it $rained on $day, so/conj {AB} played $game (indoors|inside|in the house).",
            "$when, {AB} played $game (upstairs|in the hall|in the big room|by the fire) because it was (cold|wet|stormy) outside.",
        )
    else:
        travel(t)
    t.one(
        "{A} put {o.the} {h.full} so/conj that/conj {o.it} would be (safe|dry), and then {AB} (began to play|played $game).",
        "{A.his} hands were full, so/conj {A} (put|set|laid) {o.the} {h.full}.",
        "{A} left/verb.action {o.the} {h.full} (for a moment|for a minute|while {A.he} tied {A.his} shoe|to (help|chase|follow) {B}).",
        "(carefully|gently|with care), {A} (put|laid|set) {o.the} {h.full} before {A.he} (ran|went) to {B}.",
    )
    detour(t)
    t.paragraph()
    t.one(
        "when it was time to (go|stop|eat|rest), {A} $looked for {o.full}. {o.it} {o.was} (gone|not there)!",
        '"where {o.is} {o.the}?" {A} $cried $suddenly. {A.his} (hands|pockets) were empty.',
        "$suddenly {A} stopped. {A.he} did not have {o.the}, and {A.he} could not remember where {o.it} {o.was}.",
        'then {A} (looked|felt) in {A.his} (bag|pocket) and (gasped|turned pale). "{o.full} {o.is} (gone|lost|missing)!" {A.he} $cried.',
    )
    t.one(
        "{A} was $very $sad because {A.he} had lost/verb.action {A.his} {o}.",
        "because {o.the} {o.was} (lost|missing|gone), {A} (began to cry|sat down and cried|felt $very $sad).",
        "{A} felt $sad, and (a tear|two tears|big tears) ran down {A.his} (face|cheek|nose).",
        "{A.his} (heart|face) fell, and {A.he} felt $very $sad.",
    )
    t.one(
        '"do not cry, {A}," $said {B}. "we will find {o.obj} (together|before dark/noun.time|soon)."',
        '"when did you last (see|hold) {o.obj}?" asked {B}. {A} (shook|scratched) {A.his} head.',
        '{B} took {A.his} hand. "let us (look|search) (everywhere|one more time|together)," {B.he} said.',
        '"I will help you (look|search)," {B} $said $at_once.',
    )
    t.one(
        "first {they} $looked {i.full}, but there was only (dust|a $spare|an old (shoe|sock|coin|letter|spoon)). {B} $looked {j.full}, and found nothing.",
        "{B} $looked {i.full}, and {A} $looked {j.full}. {o.the} {o.was} (not there|not in either place).",
        "{o.it} {o.was} not {i.full}. {o.it} {o.was} not {j.full} (either|). {A} (sighed|sniffed|wiped {A.his} eyes).",
        "{A} $looked {i.full} and found (a $spare|some (leaves|dust|crumbs|string)). {B} $looked {j} and found (nothing at all|only a $spare).",
    )
    t.paragraph()
    way = t.index(3)
    if way == 0:
        t.one(
            '"think, {A}. what did you do first?" asked {B}. {A} (shut|closed) {A.his} eyes. "I put {o.obj} {h}!" {A.he} $cried.',
            'then {A} remembered. "I left/verb.action {o.obj} {h.full}!" {A.he} $cried, and {A.he} $ran there.',
        )
    elif way == 1:
        cast.animal(t, "D", [*E.PETS, "dog", "cat"])
        t.one(
            "then {D.a} (came|ran) (along|by|up) and (sniffed|looked|scratched) {h.full}. {A} followed {D.him}.",
            "{D.a} sat down {h.full} and (would not move|made a loud noise|looked at {A}). {AB} $ran over.",
        )
    else:
        t.one(
            "as {A} (sat|bent|looked) down, {A.he} saw something {o.look} {h.full}.",
            '"wait!" {B} $cried. {B.he} (pointed|waved a hand) to {h.thefull}. "what is that {h}?"',
        )
    t.one(
        "there, {h}, {o.was} {o.full}, (safe and dry|just where {A} had left/verb.action {o.obj}|a little (dusty|dirty) but whole)!",
        "$lastly, there {o.it} {o.was}: {A.s} {o.lookn}, {h}!",
        "{o.full} {o.was} {h}, right where {A} had put {o.obj} (that morning|before the game|at the start/noun.time)!",
    )
    t.one(
        '{A} (picked|scooped) {o.obj} up and (held|hugged) {o.obj} (tight|close). "thank you, {B}!" {A.he} said.',
        "{A} was $very $glad because {o.the} {o.was} found, and {A.he} $hugB.",
        '"next time, keep {o.obj} in your (bag|pocket|hands|room)," $said {B}. {A} $smiled and said {A.he} would.',
        "{A} jumped for joy, and {B} $smiled. {A} let {B} (hold|carry|keep) {o.the} (all the way home|until bedtime|for a day).",
    )
    ending(t)


def lost_way_cast(t: Teller) -> None:
    cast.place(t, "p", ["forest", "meadow", "hill", "orchard", "field"])
    cast.animal(t, "D", [*E.WILD, "duck", "goose", "goat", "butterfly"])
    t.state["guide"] = t.index(3)


def lost_way(t: Teller) -> None:
    """The children follow an animal too far, lose the path, and get home by thinking."""
    t.phenomena.update(("place", "cause"))
    t.paragraph()
    travel(t)
    t.one(
        '"stay (on the path|near the gate|close to the road)," {M} had told {them}. {A} had (nodded|promised).',
        '{M} had said, "be home before (dark/noun.time|supper|the sun goes down)." {A} had promised.',
        "{M} had packed (a small basket|a bag|two bags) with (bread and cheese|cookies and milk|apples and nuts|buns and jam) for {them}.",
        "{A} had been {p.at} (once|twice|many times) before, but (never|not once) without {M}.",
    )
    t.one(
        "$suddenly, {D.a} (ran|hopped|jumped) (across|over) the path. {A} (wanted to|had to) see where {D.he} lived, so/conj {they} ran after {D.him}.",
        'then {B} saw {D.a} (by|behind|under) a (tree|bush|rock). "let us follow {D.him}!" $cried {B}.',
        "{D.a} looked at {them} and $walked away. {AB} followed {D.him} (over a hill|past a pond|through the tall grass|between the trees).",
    )
    detour(t)
    t.paragraph()
    t.one(
        "when {D.the} was gone, {A} looked (back|around). {A.he} could not see (the path|the road|the gate|any house).",
        "soon {D.the} was (gone|out of sight), and so was the path. all the (trees|hills|bushes) looked the same.",
        '{D.the} (hid|went) in a (hole|hollow tree|bush). "where (is the path|are we), {A}?" asked {B}. {A} did not know.',
    )
    t.one(
        "{B} was $very $scared because {they} were lost and (the sun was low|it was late|it was getting dark|the wind was cold).",
        "because {they} were lost, {B} felt $scared and held {A.s} (hand|arm|sleeve) (tight|).",
        '"I am $scared," $whispered {B}. {A} was $scared too, but {A.he} did not (say so|show it).',
        "it began to grow (dark|cold|foggy), and {B} began to cry. {A} $hugB.",
    )
    guide = t.state["guide"]
    if guide == 0:
        t.one(
            '"listen," $said {A}. "I can hear (the stream|water|the river). it runs (past our house|down to the village|by the mill)."',
            '{A} remembered what {M} had said: "(a stream|a river) always (runs|flows) (down to the village|to the sea|past some house|past a mill|to where people live)."',
        )
        t.one(
            "so/conj {A} and {B} followed the (stream|water|river) (down|along), (step/noun.motion by step/noun.motion|hand in hand|one after the other|mile after mile), (over|around) (rocks|roots|logs|stones) and (under|past|through) (low|wet|thick|sharp) (branches|bushes|leaves|weeds).",
            "{AB} walked (beside|along) the (stream|water) until {they} came to (a bridge|the mill|the road|a wall) that/pron.function {they} knew.",
        )
    elif guide == 1:
        t.one(
            '"look at the (smoke|light|tower) over there," $said {A}. "that is (the village|our street|home/noun.place)."',
            "{A} climbed (a tall tree|a big rock|the highest hill) and saw the (lights|roofs|chimneys|bells) of the village far (away|below).",
        )
        t.one(
            "{A} and {B} walked (for an hour|and walked), first (up|over|around) a (hill|pond|rock|farm) and then (down|through|across) a (field|wood|meadow|stream|valley), (hand in hand|without a rest/noun.time|and {B} sang to be brave|and {A} told jokes).",
            "{A} went first and {B} came (second|next|behind), (past|around) (rocks|ponds|fences|a barn|a well/noun.place|a mill), and the (light|lights|village) (came|got|grew) nearer (and nearer|with each step/noun.motion|all the time).",
        )
    else:
        cast.grown(t)
        t.one(
            'just then, {AB} met {W.a} with (a lamp|a dog|a cart|a big basket|two cows). "are you lost?" {W.he} asked (kindly|gently).',
            "{W.a} came (along|by) with (a lantern|a goat|a cart|a bag of (apples|potatoes|wood)) and (stopped|smiled) when {W.he} saw {them}.",
        )
        t.one(
            "{A} told {W.the} {A.his} (name|street) and (held|took) {B.s} hand, and {W.the} (took|led|walked) {them} back to the path.",
            '"I know {M.my}," $said {W.the} to {A}. "come with me." {W.he} (took|led) {them} (safely|all the way) home.',
        )
    t.paragraph()
    t.one(
        "{M} was (at the door|at the gate|on the road|by the window) (with a lamp|with the dog|with two neighbors|in {M.his} coat|). {M.he} ran to {A} and $hugA.",
        '"{A}! {B}! I was so $scared!" $cried {M}. {M.he} held {them} both (tight|close|for a long time).',
        "{M} was not $cross, only $glad, because {A} and {B} were safe.",
        "when {they} got home, {M} gave {them} (hot soup|warm milk|bread and honey|cocoa) and (dry socks|a blanket|a long hug).",
    )
    t.one(
        '"next time we will stay (on the path|close to home|where we should)," $said {A}.',
        "{A} said {A.he} was sorry, and {M} $smiled.",
        '"I was $scared, but {A} was not," $said {B}. {A} $smiled and (said nothing|looked away|turned red).',
        '"how did you find the way?" asked {M}. {A} told {M.him} (everything|all of it) while {B} (ate|nodded|yawned).',
    )
    ending(t)


def treasure_cast(t: Teller) -> None:
    cast.place(t, "p", ["beach", "garden", "park", "farm", "forest", "orchard", "meadow", "hill"])
    for role in "hij":
        cast.spot(t, role, False)
    cast.thing(t, "o", E.SMALL_TOYS)
    t.state["source"] = t.index(3)


def treasure(t: Teller) -> None:
    """A map leads by three clues (i, j, h) to a box with o inside."""
    t.phenomena.update(("place", "counting"))
    t.paragraph()
    t.one(
        "$when, {A} found a map (in|inside) an old (book|box|bottle|coat|trunk|boot). (it was (torn|yellow|dusty)|the paper/noun.thing was (old|brown|thin)) and had/verb.action (a big|a red|a black) cross/noun.thing on it.",
        '$when, {M} gave {A} (a map|an old map). "(I made|I drew|I found) it (when I was small|long ago|last night)," {M} said.',
        "$when, a (letter|note|map) came for {A}. it said: find the {o.look} box {p.at}.",
    )
    t.one(
        '{A} (ran to|called|showed it to|took it to) {B}. "it is a treasure map!" $cried {B}. "let us go {p.to} (now|today|together|before lunch)!"',
        '"this shows {p.the}!" $said {B} when {A} (came|showed it to {B.him}). so {they} $walked {p.to} with (a spade|two spades|a rope|a lamp|a bag).',
        "{A} could not (read|follow) it alone, so/conj {A.he} asked {B}, who was good at (maps|puzzles|reading). {they} $walked {p.to} (together|with a spade).",
    )
    detour(t)
    t.paragraph()
    t.one(
        "the first (sign|clue) was {i.full}: it was a (white|red|blue|green|round|flat) (stone|shell|ribbon|arrow).",
        "{they} looked {i.full}, as the map said. there was a (blue|red|yellow|paper|wooden) arrow, and it (pointed|showed) (left|right|north|south).",
        "{A} counted (ten|twelve|seven|eight|nine|six) steps (from|past) {i.thefull} and (turned|went) (left|right).",
    )
    t.one(
        "the second (clue|sign) was {j.full}, but {B} (fell|stepped) in (the mud|a hole|a puddle) on the way. {A} $helpedB.",
        "the next arrow was {j}. {B} saw it first and (clapped|jumped) (for joy|with joy|again).",
        '"now we must go on," $said {B}. {j.full} {they} found another (arrow|ribbon|note).',
        '{j.full}, {they} found a (small|folded|wet) note. "you are (near/adj.quality|close)," it said.',
    )
    t.maybe(
        0.5,
        '"I am tired," $said {B}. "(just a little more|we are so close|do not give up)," $said {A}.',
        "the sun was hot and the bag was heavy, but {A} did not stop.",
        "a (bee|crow|goat|wasp|fly/noun.animal) (chased|followed) {them}, and {they} had to run.",
    )
    detour(t, 0.6)
    t.paragraph()
    t.one(
        "the cross/noun.thing was {h.full}. {A} (dug|pulled|pushed|looked) and {B} (dug|pulled|helped) too, (until {their} arms hurt|for a long time|as hard as {they} could).",
        "$lastly, {they} came to {h.thefull}. {A} got down on {A.his} knees and began to dig. {B} took turns with {A.him}.",
        'the map (ended|stopped) {h.full}. "dig here," $said {A}, and {they} did, (until|till) something went (clunk|bump|knock|bang).',
    )
    t.one(
        "there {h} was a (small|heavy|little|rusty|wooden|dirty) box. inside {o.was} {o.a}!",
        "{A} (pulled|lifted) out a (small|rusty|wooden|muddy|heavy) box. {B} opened it $slowly. {o.a} {o.was} inside!",
        "{they} found a box {h}, and in the box {o.was} {o.a}. {B} (gasped|held {B.his} breath|could not speak).",
    )
    n = 2 + t.index(4)
    m = 2 + t.index(4)
    cast.count(t, "n", "coin", n)
    cast.count(t, "m", "coin", m)
    cast.count(t, "s", "coin", n + m)
    t.one(
        "there were also {n} for {A} and {m} for {B}, {s} in all.",
        "under {o.the} {A} found {n}, and {B} found {m.n} more. {n.n} and {m.n} make {s.n}.",
        "{B} counted the coins. there were {n.n} gold ones and {m.n} silver ones, so/conj {they} had/verb.action {s}.",
    )
    t.one(
        "because {they} had found {o.full} together, {A} gave {o.the} to {B} (to keep|for a week|first), and {B} (later gave|gave) {A} the (map|box|coins).",
        '"you have {o.the} today, and I have {o.obj} tomorrow," $said {A}. {B} $smiled and (nodded|said yes|shook {A.his} hand).',
        '"who (hid|put) {o.the} {h}?" asked {B}. {M} only $smiled when {A} (showed|told) {M.him}.',
        "{A} took {o.full} home and showed {o.obj} to {M}. {M} was $very $proud of {A.him} and {B}.",
    )
    ending(t)


PLOTS = {
    "lost_toy": (lost_toy_cast, lost_toy),
    "lost_way": (lost_way_cast, lost_way),
    "treasure": (treasure_cast, treasure),
}
