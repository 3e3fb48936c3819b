# ruff: noqa: E501  (a template or a word list is read as one line)
"""Plots about doing: a rescue and a garden."""

from slms.data.stories import cast
from slms.data.stories import entities as E
from slms.data.stories.discourse import detour, ending, giving, travel
from slms.data.stories.engine import Teller
from slms.data.stories.template import pieces


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
        "$suddenly {A} heard a (small|weak|sad|thin|strange) (cry/noun.speech|voice|sound). it came from (behind a wall|the other/adj.quality side|far off|somewhere near).",
        '"(listen|hush|wait)! do you hear (that|it)?" asked {A}. (someone|something) was crying (far away|close by|not far off).',
        "then {B} stopped and (pointed|listened). something was (crying|calling) for help/noun.thing.",
    )
    trap = t.state["trap"]
    t.bound["tree"] = pieces(t.pick(("tree", "oak", "roof", "tower", "ladder")))
    if trap == 0:
        t.one(
            "{D.a} sat high up in a (tree|oak). {D.he} had climbed up, but {D.he} could not (climb|get) down.",
            "high in a (tall|big|old) tree was {D.a}, and {D.he} was $very $scared because the branch was (thin|weak).",
        )
        first = (
            "{A} (called|whistled) and held out (a leaf|some bread|both arms), but {D.the} did not (move|come|dare)."
        )
        second = "{B} held a (ladder|long rope|big blanket) while {A} climbed up, branch by branch, and took {D.him} (in one arm|by the neck|in {A.his} hat)."
    elif trap == 1:
        t.one(
            "{D.a} had fallen/verb.motion into a deep (hole|pit|well/noun.place|ditch), and the sides were too (high|smooth|wet) for {D.his} (little|short) legs.",
            "down in a (hole|dry well/noun.place|ditch) sat {D.a}. {D.he} had (fallen/verb.motion in|slipped) and could not jump out.",
        )
        first = "{B} put a (stick|board|branch) into the hole, but it was (too|much too) short, and {D.the} (slipped|fell) back."
        second = "{A} tied a (basket|bucket|bag) to a rope and let it down $slowly. {D.the} (climbed|jumped) in, and {AB} pulled {D.him} up."
    elif trap == 2:
        t.one(
            "{D.a} was stuck in the mud near the water, and the mud was (deep|soft|cold). only {D.his} (head|nose|back/noun.body) could be seen.",
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
        '{A} felt $sad because {D.the} was (so small|all alone|so $scared). "hold on, little one/pron.function!" {A.he} $cried.',
        '"poor {D}!" $cried {B}. "what can we do, {A}?" {A} thought (hard|fast).',
    )
    t.say(first)
    t.one(
        '"that did not work," $said {B}. "then we try (again|something else|another way)," $said {A}.',
        "{B} (sighed|wanted to give up|was close to tears), but {A} had (another|a better|a new) plan.",
        '{A} sat down and looked around (for a moment|with care). $then {A.he} jumped up. "I know!" {A.he} $cried.',
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
            '{W.a} came (running|along). "that is my {D}!" {W.he} $cried. {W.He} was so $glad that/conj {W.he} (danced|cried|hugged {them} both).',
            "{D.the} belonged to {W.a}. {W.the} thanked {AB} and gave each of {them} (a coin|an apple|a bag of nuts|a warm bun|a ride/noun.motion home).",
        )
    else:
        cast.count(t, "n", t.pick(E.SNACKS), 2 + t.index(4))
        t.one(
            "{A} named {D.him} (Biscuit/propn.animal|Pip/propn.animal|Dot/propn.animal|Coco/propn.animal|Star/propn.animal|Patch/propn.animal|Fudge/propn.animal|Bean/propn.animal), and every $day {A.he} and {B} brought {D.him} (milk|bread|water|leaves).",
            '{D.the} followed {A} home. {M} said, "(well/intj.speech|oh my), who is this?" and gave {D.him} a (warm place|box with a blanket|bed) near the stove.',
        )
    t.one(
        "{A} was $very $glad because {D.the} was (safe|free|well/adj.quality|with friends).",
        "{B} said that/conj {A} was (brave|a hero|the bravest {A.child} in town), and {A.his} ears turned red.",
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
    cast.alias(t, "G", giver)
    cast.alias(t, "T", taker)
    t.phenomena.add("ioi")
    t.one(
        "$when, {M} gave {A} a bag of {k} seeds. when {AB} went to the garden, {G} gave {m} to {T}.",
        "$when, {A} found some {k} seeds in a drawer. {AB} went outside, and {G} gave {m} to {T}.",
        "in spring, {A} and {B} wanted to grow {k.pl}. {M} (bought|brought|found) the seeds, and {G} gave {m} to {T}.",
    )
    t.one(
        "{G} kept {n.n}, so/conj {they} had/verb.action {s} (in all|together).",
        "{G} had/verb.action {n.n} more. {n.n} and {m.n} make {s.n}.",
        '"you have {m.n} and I have {n.n}," $said {G}. "that makes {s}."',
    )
    t.one(
        "{they} dug a (row|line) of (small|round|deep|little) holes {h.full} and put (one seed|a seed) in each.",
        "{A} dug the holes {h.full}, and {B} dropped the seeds in and (covered/verb.action|patted) them with (soft|dark|warm) (earth|soil).",
    )
    t.one(
        '"now we wait," $said {A}. {B} (sat down|lay in the grass) and waited for (an hour|ten minutes|five minutes). nothing (came|happened).',
        '"how long will it take?" asked {B}. "(many|twenty|thirty) days," $said {M}. "a seed is not fast/adj.quality but slow."',
        "{A} (wrote|painted/verb.action) a sign: please do not step on our {k.pl}.",
    )
    detour(t, 0.9)
    t.paragraph()
    t.one(
        "(each|every) $morning {AB} came with (a (can/noun.thing|bucket|jug) of water|water and (songs|a book|a snack)). (at first|for a week|for ten days) {they} saw only (earth|mud|soil|stones|(a|one) (worm|beetle|snail|weed)).",
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
            '{B} was $very $cross because {D.the} had (eaten|bitten) their plants. "go away!" {B.he} $cried.',
            "{A} was $sad because the leaves were (gone|eaten). {B} wanted to (catch|chase) {D.the}.",
        )
        t.one(
            "{A} had/verb.action a better (idea|plan). {they} built a (small|low|strong) fence, and {they} left/verb.action some (bread|grass|old leaves) outside for {D.the}.",
            '"{D.the} is only hungry," $said {A}. {they} put a (net|fence|wall of stones) around the row and gave {D.him} a (dish|plate) of (leaves|crumbs|oats).',
        )
    elif trouble == 1:
        t.one(
            "but then it did not rain for (two|three|four) weeks. the ground was dry and hard/adj.quality, and the leaves hung (down|low).",
            "but the sun was hot (day after day|all week|that month). the (soil|earth|ground) (near|by|beside|around) {A.s} (plants|row|shoots) was not wet but dry, and {B.s} (plants|shoots|leaves) (grew|became) (weak|brown|thin).",
        )
        t.one(
            '{B} was $sad because the plants were (thirsty|weak|brown). "they will die," {B.he} said.',
            "{A} was $scared because the leaves were (yellow|brown|dry).",
        )
        t.one(
            "so/conj {AB} carried water from the (river|well/noun.place|pond|lake), {n.n} buckets in the morning and {m.n} at night, {s.n} each day.",
            '"we will not give up," $said {A}. {they} carried water from the (well/noun.place|river|pond) until {their} arms (hurt|shook), and then (it rained|the rain came).',
        )
    else:
        t.one(
            "but (one|that|the next) (night|evening|week) a (storm|wild storm|strong wind) came, and it (broke|bent) {A.s} (stems|sticks|leaves|plants). in the morning {A} and {B} found them (flat|bent|brown) in the (mud|grass|rain).",
            "but a (strong|wild|cold) wind came from the (north|sea|hills) and pushed the plants over.",
        )
        t.one(
            '{A} was $very $sad because the plants were (broken|bent|flat). "all our work/noun.thing!" {A.he} $cried.',
            "because of the wind, {B} was $sad and would not (look|eat|play).",
        )
        t.one(
            "then {A} (tied|bound) each plant/noun.nature to a stick with (soft|red|blue|white|old) (string|wool|ribbon), and {B} held them (straight|up|still/adj.quality).",
            "{M} showed {them} how to tie the plants to (sticks|a fence|poles), so/conj that/conj the wind could not (push|hurt|bend) them (again|any more).",
        )
    if t.chance(0.35):
        giving(t)
    t.paragraph()
    t.one(
        "by (the end of summer|august|the first cold night), the {k.pl} {h} were (big|tall|red|golden|ripe), bigger than any (on the street|in the village|in town).",
        "week by week they grew. $lastly, the {k.pl} were (ready|ripe|as tall as {A}|as big as {B.s} head).",
        "when (autumn|summer|the warm days) came, there were so many {k.pl} that/conj {A} could not (count|carry) them.",
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


PLOTS = {"rescue": (rescue_cast, rescue), "garden": (garden_cast, garden)}
