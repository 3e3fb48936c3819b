"""Plots about doing: a rescue, a garden, a race."""

from slms.data.stories import cast
from slms.data.stories import entities as E
from slms.data.stories.discourse import detour, ending, giving, travel
from slms.data.stories.engine import Teller, pieces


def rescue_cast(t: Teller) -> None:
    cast.place(t)
    cast.animal(t, "D", E.YOUNG)
    t.state["trap"] = t.index(4)


def rescue(t: Teller) -> None:
    """A young animal is in danger; one plan fails, the second works; the mother or owner comes."""
    t.phenomena.update(("cause", "place"))
    t.paragraph()
    travel(t)
    detour(t, 0.9)
    t.one(
        "$suddenly {A} heard a (small|weak|sad|thin|strange) (cry|voice|sound). it came from (behind a wall|the other side|far off|somewhere near).",
        '"(listen|hush|wait)! do you hear (that|it)?" asked {A}. (someone|something) was crying (far away|close by|not far off).',
        "then {B} stopped and (pointed|listened). something was (crying|calling) for help.",
    )
    trap = t.state["trap"]
    t.bound["tree"] = pieces(t.pick(("tree", "oak", "roof", "tower", "ladder")))
    if trap == 0:
        t.one(
            "{D.a} sat high up in a (tree|oak). {D.he} had climbed up, but {D.he} could not (climb|get) down.",
            "high in a (tall|big|old) tree was {D.a}, and {D.he} was $very $scared because the branch was (thin|weak).",
        )
        first = "{A} (called|whistled) and held out (a leaf|some bread|both arms), but {D.the} did not (move|come|dare)."
        second = "{B} held a (ladder|long rope|big blanket) while {A} climbed up, branch by branch, and took {D.him} (in one arm|by the neck|in {A.his} hat)."
    elif trap == 1:
        t.one(
            "{D.a} had fallen into a deep (hole|pit|well|ditch), and the sides were too (high|smooth|wet) for {D.his} (little|short) legs.",
            "down in a (hole|dry well|ditch) sat {D.a}. {D.he} had (fallen in|slipped) and could not jump out.",
        )
        first = "{B} put a (stick|board|branch) into the hole, but it was (too|much too) short, and {D.the} (slipped|fell) back."
        second = "{A} tied a (basket|bucket|bag) to a rope and let it down $slowly. {D.the} (climbed|jumped) in, and {AB} pulled {D.him} up."
    elif trap == 2:
        t.one(
            "{D.a} was stuck in the mud near the water, and the mud was (deep|soft|cold). only {D.his} (head|nose|back) could be seen.",
            "{D.a} stood on a (rock|log) in the middle of the water. the (rain|river|tide) had (come|grown) high, and {D.he} could not swim.",
        )
        first = "{A} (stepped|went) into the water, but it was too (cold|deep|fast), and {A.he} had to go back."
        second = "{AB} laid a (board|log|ladder) across, and {A} crawled out on it, inch by inch, until {A.he} (had|reached|held) {D.him}."
    else:
        t.one(
            "{D.a} was caught in (a fence|a net|a bush|some wire|old string), and the more {D.he} pulled, the (tighter|worse) it got.",
            "by the fence lay {D.a} with one (foot|leg) caught (in a net|in some wire|under a board|under a log).",
        )
        first = "{A} pulled (hard|once|twice), but {D.the} (cried|kicked|shook) because it hurt."
        second = "{B} (sang|spoke) to {D.the} softly while {A} (cut|opened|untied) the (knots|loops) one by one, (until {D.he} was free|with small scissors)."
    t.paragraph()
    t.one(
        '"we (must|have to) help {D.him}," $said {A}. {B} was $scared, but {B.he} (nodded|agreed|came too).',
        "{A} felt $sad because {D.the} was (so small|all alone|so $scared). \"hold on, little one!\" {A.he} $cried.",
        '"poor {D}!" $cried {B}. "what can we do, {A}?" {A} thought (hard|fast).',
    )
    t.say(first)
    t.one(
        '"that did not work," $said {B}. "then we try (again|something else|another way)," $said {A}.',
        "{B} (sighed|wanted to give up|was close to tears), but {A} had (another|a better|a new) plan.",
        "{A} sat down and looked around (for a moment|with care). $then {A.he} jumped up. \"I know!\" {A.he} $cried.",
    )
    t.say(second)
    t.maybe(
        0.5,
        "{A.s} (arms|knees|hands) shook, and {B} (held {B.his} breath|did not dare to look).",
        "it took a (long|very long) time, and {they} were (wet|dirty|cold|tired) before it was done.",
        '"(careful|slowly|easy)!" $cried {B}.',
    )
    t.paragraph()
    t.one(
        "$lastly {D.the} was safe. {D.He} (shook {D.self}|licked {A.s} (hand|nose|face)|put {D.his} head on {A.s} knee).",
        "{D.the} was (free|safe)! {A} saw that {D.he} was (wet|dirty|weak|hungry|thirsty|tired), but (not hurt|nothing was broken|{D.he} could (stand|walk|eat)).",
        "{A} held {D.the} (close|under {A.his} coat|in both arms) until {D.he} stopped (shaking|crying).",
    )
    who = t.index(3)
    if who == 0:
        t.one(
            "then {D.his} mother came (out of the trees|over the grass|running|around a rock), and {D.the} $ran to her. {A} (waved|smiled|called after them) until (they were gone|{A.he} could not see them any more|{B} (took {A.his} hand|said it was late)).",
            "{AB} put {D.him} down near {D.his} mother, who had (waited|called|looked for {D.him}) all (day|morning).",
        )
    elif who == 1:
        cast.grown(t)
        t.one(
            '{W.a} came (running|along). "that is my {D}!" {W.he} $cried. {W.He} was so $glad that {W.he} (danced|cried|hugged {them} both).',
            "{D.the} belonged to {W.a}. {W.the} thanked {AB} and gave each of {them} (a coin|an apple|a bag of nuts|a warm bun|a ride home).",
        )
    else:
        cast.count(t, "n", t.pick(E.SNACKS), 2 + t.index(4))
        t.one(
            "{A} named {D.him} (Biscuit/propn.animal|Pip/propn.animal|Dot/propn.animal|Coco/propn.animal|Star/propn.animal|Patch/propn.animal|Fudge/propn.animal|Bean/propn.animal), and every $day {A.he} and {B} brought {D.him} (milk|bread|water|leaves).",
            "{D.the} followed {A} home. {M} said, \"(well|oh my), who is this?\" and gave {D.him} a (warm place|box with a blanket|bed) near the stove.",
        )
    t.one(
        "{A} was $very $glad because {D.the} was (safe|free|well|with friends).",
        "{B} said that {A} was (brave|a hero|the bravest {A.child} in town), and {A.his} ears turned red.",
        '"you were $brave, {A}," $said {B}. "so were you," $said {A}.',
        '"I was $scared the whole time," $said {A}. "that is what brave means," $said {M}.',
    )
    ending(t)


PLANTS = "pumpkin sunflower bean tomato carrot melon rose potato strawberry".split()


def garden_cast(t: Teller) -> None:
    t.state["plant"] = plant = t.fresh(PLANTS)
    t.bound["k"], t.bound["k.pl"] = pieces(plant), pieces(E.plural(plant))
    cast.animal(t, "D", "rabbit snail crow deer goat mouse mole".split())
    cast.spot(t, "h", False)
    t.state["gave"] = t.index(2)


def garden(t: Teller) -> None:
    """Seeds are planted beside h, thirst and D threaten them, patience and work bring a harvest."""
    t.phenomena.update(("cause", "counting", "place"))
    t.paragraph()
    n, m = 1 + t.index(6), 1 + t.index(6)
    for role, size in (("n", n), ("m", m), ("s", n + m)):
        cast.count(t, role, "seed", size)
    giver, taker = ("A", "B") if t.state["gave"] == 0 else ("B", "A")
    t.phenomena.add("ioi")
    t.one(
        f"$when, {{M}} gave {{A}} a bag of {{k}} seeds. when {{AB}} went to the garden, {{{giver}}} gave {{m}} to {{{taker}}}.",
        f"$when, {{A}} found some {{k}} seeds in a drawer. {{AB}} went outside, and {{{giver}}} gave {{m}} to {{{taker}}}.",
        f"in spring, {{A}} and {{B}} wanted to grow {{k.pl}}. {{M}} (bought|brought|found) the seeds, and {{{giver}}} gave {{m}} of them to {{{taker}}}.".replace("{m} of them", "{m}"),
    )
    t.one(
        f"{{{giver}}} kept {{n.n}}, so {{they}} had {{s}} (in all|together).",
        f"{{{giver}}} had {{n.n}} more. {{n.n}} and {{m.n}} make {{s.n}}.",
        f'"you have {{m.n}} and I have {{n.n}}," $said {{{giver}}}. "that makes {{s}}."',
    )
    t.one(
        "{they} dug a (row|line) of (small|round|deep|little) holes {h.full} and put (one seed|a seed) in each.",
        "{A} dug the holes {h.full}, and {B} dropped the seeds in and (covered|patted) them with (soft|dark|warm) (earth|soil).",
    )
    t.one(
        '"now we wait," $said {A}. {B} (sat down|lay in the grass) and waited for (an hour|ten minutes|five minutes). nothing (came|happened).',
        '"how long will it take?" asked {B}. "(many|twenty|thirty) days," $said {M}. "a seed is not fast but slow."',
        "{A} (wrote|painted) a sign: please do not step on our {k.pl}.",
    )
    detour(t, 0.9)
    t.paragraph()
    t.one(
        "(each|every) $morning {AB} came with (a (can|bucket|jug) of water|water and (songs|a book|a snack)). (at first|for a week|for ten days) {they} saw only (earth|mud|soil|stones|(a|one) (worm|beetle|snail|weed)).",
        "{A} watered the row on monday, and {B} watered it on $day. (at first|for a week) there was only (soil|earth|mud).",
        "the days went by. {A} (pulled|dug) the weeds, and {B} (carried|brought) the water.",
    )
    t.one(
        "then, one $morning, there was a (tiny|small|thin|pale|soft) green (leaf|shoot) {h}. {A} (danced|jumped) for joy, and {B} $smiled.",
        '"(come|look), {B}!" $cried {A}. {h} stood a (tiny|thin|small) green (shoot|leaf), (no longer than a finger|as small as a bug).',
    )
    trouble = t.index(3)
    if trouble == 0:
        t.one(
            "but {D.a} had seen it too. in the night {D.he} came and (ate|bit) the (best|tallest|first) (leaf|shoot|leaves).",
            "but the next (day|morning|week) (half|most|some) of {A.s} leaves were (gone|eaten). {D.a} sat {h} with a full (mouth|stomach|belly).",
        )
        t.one(
            "{B} was $very $cross because {D.the} had (eaten|bitten) their plants. \"go away!\" {B.he} $cried.",
            "{A} was $sad because the leaves were (gone|eaten). {B} wanted to (catch|chase) {D.the}.",
        )
        t.one(
            "{A} had a better (idea|plan). {they} built a (small|low|strong) fence, and {they} left some (bread|grass|old leaves) outside for {D.the}.",
            '"{D.the} is only hungry," $said {A}. {they} put a (net|fence|wall of stones) around the row and gave {D.him} a (dish|plate) of (leaves|crumbs|oats).',
        )
    elif trouble == 1:
        t.one(
            "but then it did not rain for (two|three|four) weeks. the ground was dry and hard, and the leaves hung (down|low).",
            "but the sun was hot (day after day|all week|that month). the (soil|earth|ground) (near|by|beside|around) {A.s} (plants|row|shoots) was not wet but dry, and {B.s} (plants|shoots|leaves) (grew|became) (weak|brown|thin).",
        )
        t.one(
            "{B} was $sad because the plants were (thirsty|weak|brown). \"they will die,\" {B.he} said.",
            "{A} was $scared because the leaves were (yellow|brown|dry).",
        )
        t.one(
            "so {AB} carried water from the (river|well|pond|lake), {n.n} buckets in the morning and {m.n} at night, {s.n} each day.",
            '"we will not give up," $said {A}. {they} carried water from the (well|river|pond) until {their} arms (hurt|shook), and then (it rained|the rain came).',
        )
    else:
        t.one(
            "but (one|that|the next) (night|evening|week) a (storm|wild storm|strong wind) came, and it (broke|bent) {A.s} (stems|sticks|leaves|plants). in the morning {A} and {B} found them (flat|bent|brown) in the (mud|grass|rain).",
            "but a (strong|wild|cold) wind came from the (north|sea|hills) and pushed the plants over.",
        )
        t.one(
            "{A} was $very $sad because the plants were (broken|bent|flat). \"all our work!\" {A.he} $cried.",
            "because of the wind, {B} was $sad and would not (look|eat|play).",
        )
        t.one(
            "then {A} (tied|bound) each plant to a stick with (soft|red|blue|white|old) (string|wool|ribbon), and {B} held them (straight|up|still).",
            "{M} showed {them} how to tie the plants to (sticks|a fence|poles), so that the wind could not (push|hurt|bend) them (again|any more).",
        )
    if t.chance(0.35):
        giving(t)
    t.paragraph()
    t.one(
        "by (the end of summer|august|the first cold night), the {k.pl} {h} were (big|tall|red|golden|ripe), bigger than any (on the street|in the village|in town).",
        "week by week they grew. $lastly, the {k.pl} were (ready|ripe|as tall as {A}|as big as {B.s} head).",
        "when (autumn|summer|the warm days) came, there were so many {k.pl} that {A} could not (count|carry) them.",
    )
    t.one(
        "{they} filled (two|three|four|five) (baskets|boxes|bags) and gave one to (the school|the neighbors|the baker|the old man next door|the nurse).",
        "{A} gave the (biggest|best|finest) {k} to {M}, and {B} gave {B.his} to (the teacher|the farmer|a sick friend|the baker).",
        "{AB} took them to the market and sold (all|half|nine|ten|seven) of them for (ten|twelve|eight|nine) coins.",
    )
    t.one(
        "{A} was $proud because (it had grown from|all of it came from) so small a seed.",
        '"big things come from small things," $said {B}. {A} $smiled, because {B} was $very small (too).',
        "{B} kept {s} for the next spring and put them in a (jar|box|tin|bag).",
        '"next year we can grow (roses|beans|melons|corn|plums) too," $said {A}.',
    )
    ending(t)


def race_cast(t: Teller) -> None:
    cast.place(t, "p", "park beach meadow hill village farm lake school field".split())
    cast.toy(t, "o") if t.chance(0.4) else cast.thing(t, "o", ["crown", "bell", "kite", "drum", "book", "whistle", "hat"])
    t.state["slip"] = t.index(3)
    he = t.pick(("she", "he"))
    cast.child(t, "C", he)


def race(t: Teller) -> None:
    """C boasts before a race; someone falls; A stops to help; the prize o ends in good hands."""
    t.phenomena.update(("cause", "opposites", "ioi"))
    t.paragraph()
    t.one(
        "$when, there was a big race {p.at}. the prize was {o.a}.",
        "every (year|spring|summer|autumn), the children had a race {p.at}. this year the prize was {o.a}.",
        '"there is a race {p.at} on $day," $said {B}. "whoever wins gets {o.a}!"',
    )
    t.one(
        "{A} wanted to (win|run|try|have {o.obj}) (very much|badly|for {M}|more than anything), but {A.his} legs were (not long but short|not strong but weak|not fast but slow).",
        "{A} was not fast but slow. still, {A.he} (ran|practiced) every $morning with {B}, (up|around|over) the hill and back.",
        "{A} and {B} practiced for (two|three|four|five) weeks. {A} ran to the (mill|bridge|gate|well), and {B} counted the (steps|seconds|minutes).",
    )
    t.one(
        '"I am fast and you are slow," {C} told {A}. "you will never (win|beat me)." {A} felt $sad.',
        '{C}, who was (tall|strong) and $very fast, laughed at {A}. "(a snail|a turtle|my grandma) is faster than you!" {C.he} said.',
        "{C} had won (twice|three times) before. {C.He} (showed off|looked down at the others) and said that {C.he} would win again.",
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
        '"go!" $cried the (teacher|farmer|baker), and {n} began to run. {A} saw only {C.s} back.',
    )
    t.one(
        "{A} ran (past|around) the (mill|well|barn|pond), (over|across) the bridge and (up|down) the hill. {A.his} heart beat like a drum.",
        "the road went (up the hill|along the river|through the wood|past the barn), and {A} (kept on|ran at the same speed|did not stop).",
        "{A} passed one child at the (bridge|mill|barn|gate|pond) and (another|two more) (on the hill|by the (wall|wood|well)). {B} (waved|was close behind|called {A.s} name).",
    )
    slip = t.state["slip"]
    faller = "C" if slip < 2 else "B"
    f = faller
    t.one(
        f"$suddenly {{{f}}} (slipped|stepped) on a (wet|loose|round|sharp) stone and fell. {{{f}.He}} held {{{f}.his}} (knee|foot|leg) and cried.",
        f"then, at the (corner|bridge|last hill), {{{f}}} (looked back|turned {{{f}.his}} head) and fell over a (root|stone|log|rope). {{{f}.his}} (knee|hand|foot) was hurt.",
    )
    t.one(
        f"the others ran on, but {{A}} stopped because {{{f}}} was hurt.",
        f"{{A}} could (see|hear) the (end|line|crowd). {{A.He}} could win now! but {{{f}}} was hurt, so {{A.he}} (turned|went) back.",
        f"(nobody|no one) stopped (for {{{f}}}|to help|to look). then {{A}} came (along|by|around the corner), and {{A.he}} thought not of {{o.the}} but of {{{f}}}.",
    )
    t.one(
        f'"(take|give me) your hand, {{{f}}}," $said {{A}}. {{A.He}} put {{A.his}} arm around {{{f}}}, and they walked on together.',
        f'"can you (stand|walk), {{{f}}}?" asked {{A}}. {{A.He}} tied {{A.his}} scarf around the {{q}} and helped {{{f}.him}} up.'.replace("the {q}", f"{{{f}.his}} leg"),
        f'"why do you help me?" asked {{{f}}}. "because you (fell|are hurt|need it)," $said {{A}}.',
    )
    t.paragraph()
    t.one(
        f"{{A}} and {{{f}}} came in last, (arm in arm|side by side|slowly), but everyone (clapped|stood up and clapped|$cried their names).".replace("|$cried their names", "|sang"),
        f"when {{A}} reached the line with {{{f}}}, it was late, not early. (the whole (crowd|village|school)|{{M}}|everyone) (clapped|sang|waved|shouted {{A.s}} name|jumped for joy).",
        f"step by step, {{A}} and {{{f}}} came to the end. the crowd was quiet, then loud.",
    )
    if t.index(2) == 0:
        t.one(
            'the (teacher|farmer|baker|gardener) (thought for a moment|looked at {A} for a while|held up {o.the}) and said, "{o.the} (should go|goes|belongs) to {A}, who has the (biggest|best|warmest) heart."',
            "the (winner|first child) looked at {o.full} and then at {A}. (\"you should have {o.obj}.\"|\"take {o.obj}, {A}.\") ^the (winner|child) gave {o.the} to {A}.",
        )
    else:
        t.one(
            "{A} did not get {o.the}, but {M} gave {A.him} (a medal of paper|a paper star|a crown of leaves|a bunch of flowers) and $hugA.",
            "someone else got {o.full}. {A} did not mind. {B} gave {A.him} (an apple|a flower|a paper star|a big hug) and said, \"you won more than a prize.\"",
        )
    t.one(
        f'"I was (mean|wrong|rude)," $said {{C}} to {{A}}. "I am sorry." they shook hands.',
        f"{{C}} was not proud now but (quiet|kind|sorry). {{C.He}} gave {{A}} (a cookie|an apple|half a bun|a hug|{{C.his}} cap).",
        f"{{C}} came to {{A}} and {{B}}. \"can I run with you (tomorrow|next week|on $day)?\" {{C.he}} asked, and {{A}} said yes.",
    )
    t.one(
        "{A} was $very $glad because {A.he} had found a friend.",
        "{A.s} legs were weak, but {A.his} heart was strong.",
        '"you were last," $said {M}. "and I am $very $proud of you."',
        "{B} told everyone what {A} had done.",
    )
    ending(t)


PLOTS = {"rescue": (rescue_cast, rescue), "garden": (garden_cast, garden), "race": (race_cast, race)}
