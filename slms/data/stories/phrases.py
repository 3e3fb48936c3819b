# ruff: noqa: E501  (a template or a word list is read as one line)
"""Choices of words that many templates share, as pieces of template text."""

GLAD = "(happy|glad|cheerful|joyful|delighted|pleased|merry)"
SAD = "(sad|unhappy|gloomy|upset|miserable)"
SCARED = "(scared|afraid|frightened|worried|nervous|alarmed)"
PROUD = "proud"
CROSS = "(angry|cross|mad|grumpy|annoyed)"
VERY = "(very|so|really|quite)"
SAID = "said"
CRIED = "(cried|shouted|called|yelled)"
ASKED = "(asked|wondered)"
WHISPERED = "(whispered|murmured)"
RAN = "(ran|hurried|dashed|raced|rushed)"
WALKED = "(walked|went|strolled|skipped|wandered)"
LOOKED = "(looked|searched|hunted)"
SMILED = "(smiled|laughed|grinned|giggled|beamed)"
THEN = "(then|next|after that|a moment later|soon|just then)"
SUDDENLY = "(suddenly|all at once|just then|at that moment)"
LASTLY = "(at last|finally|in the end|after a long while/noun.time)"
AT_ONCE = "(at once|right away|quickly|without a word)"
SLOWLY = "(slowly|carefully|gently|softly|quietly)"
MORNING = "(morning|afternoon|day|evening)"
SUNNY = "(sunny|warm|bright|cool|windy|quiet|cloudy|fine|lovely|fresh)"
DAY = "(monday|tuesday|wednesday|thursday|friday|saturday|sunday)"
SEASON = "(spring|summer|autumn|winter)"
NICE = "(nice|good|lovely|wonderful|clever|fine|great)"
GAME = "(tag|hide/noun.toy and seek|catch/noun.toy|pirates|school|kings and queens|house|knights|shop)"
HUG = "(hugged {0}|gave {0} a (big|warm|long|tight) hug|held {0} tight|put an arm around {0}|patted {0} on the (back/noun.body|shoulder|head))"
LIKED = "(liked|loved|enjoyed)"
HOBBY_OUT = (
    "(to climb (trees|walls|hills|rocks)|to sail (toy|paper|little) boats (on the pond|in puddles|down the stream)|"
    "to catch (frogs|bugs|leaves|crickets) (by the pond|in a jar|after school)|"
    "to (run|dance|jump) (in the grass|all day|with the wind)|to walk (in the woods|by the river|in the rain)|"
    "to look at (stars|bugs|clouds|birds)|to collect (shells|stones|leaves|feathers)|"
    "to play (pirates|tag|knights) (in the woods|with (friends|a dog))|to dig (holes|in the sand|in the mud)|"
    "to (ride a (bike|pony)|swim in the (lake|river|sea)|fly a kite|feed the (ducks|hens|goats|birds|sheep)))"
)
HOBBY_IN = (
    "(to draw (animals|boats|flowers|dragons|the moon)|to sing (songs|in the bath|to the cat|old songs)|"
    "to (read|look at) (books|stories|maps) (in bed|by the window|at night|on rainy days)|"
    "to build (towers|castles|bridges|ships) (out of (blocks|boxes|paper/noun.thing)|on the floor)|"
    "to paint (shells|stones|leaves|boxes|faces)|to play (music|house|the drum|the flute|school)|to tell (jokes|stories|secrets)|"
    "to (help|work|sing) in the (kitchen|shop|garden)|to bake (bread|cookies|pies|muffins|cakes)|"
    "to (sew|mend) (hats|socks|dolls|dresses)|to (fix|make) (toys|clocks|bells|masks|hats))"
)
HOME = (
    "(in a (small|little|tall|big|white|yellow|red|blue|cozy|old) (house|cottage|home/noun.place) (by the (sea|river|forest|lake|road)|"
    "on a (hill|farm|busy street|quiet street)|at the end of the (road|lane|village)|near the (park|woods|school|market|mill))|"
    "on a (small|big|busy|quiet|happy) farm (by the (sea|river|forest)|near the (hills|woods|village)))"
)
FEATURE = (
    "((brown|black|red|golden|curly|short|long|dark|straight|messy) hair|a (big|loud|warm|funny|quick|happy) laugh/noun.body|"
    "(green|blue|brown|gray|bright|kind) eyes|a (big|wide|warm|shy|sweet) smile/noun.body|"
    "(yellow|red|green|blue|muddy|big) (boots|shoes|socks)|a (red|blue|green|striped|yellow|purple) (coat|hat|scarf|sweater))"
)
LOOK = "(red|green|white|old|wet|shiny|tall|small|bright|brown|clean|broken|crooked|pretty|yellow|covered in (moss|leaves|dust|snow))"
BESIDE_ONE = "(near|by|behind|beside|next to)"
BESIDE_MANY = "(near|by|behind|beside|between|next to)"
RESTED = "(sat (under a tree|on a wall|in the grass|down)|stopped to rest|grew hungry|(got|became) tired|waited (there|a while/noun.time)|took a (short|little) break)"
ANIMAL_SPOT = "(under a bush|on a (rock|log|wall|fence|roof)|behind a tree|near the (water|gate|path|road)|in the (grass|leaves|mud))"
ANIMAL_ACT = "(slept|hid|sat still/adj.quality|ate a leaf|made a funny noise|watched {them}|washed {Z.his} face|looked for food|ran in circles)"
RAN_OFF = "(ran off|went away|hid again|made a (soft|funny|loud) (noise|sound)|moved on)"
# how speech is attributed to X, so/conj that/conj the order varies too
SPEECH = {
    "said": "(said {X}|{X} said|said {X} (softly|quietly|with a smile/noun.body|after a moment|at once|gently|kindly|in a small voice))",
    "cried": "((cried|shouted|called|yelled) {X}|{X} (cried|shouted|called|yelled))",
    "whispered": "((whispered|murmured) {X}|{X} (whispered|murmured)|said {X} (softly|quietly|in a low voice))",
}
RAINED = "(rained|snowed|poured)"
WHEN = (
    f"(one {SUNNY} {MORNING}|one {SUNNY} {MORNING} in {SEASON}|on a {SUNNY} {DAY}|on {DAY} (morning|afternoon)|last {SEASON}|"
    f"one {DAY}|early one {SUNNY} {MORNING})"
)
MACROS = {
    **{name.lower(): text for name, text in list(globals().items()) if name.isupper()},
    "loved": "(loved|liked|cared for)",
    "brave": "(brave|very brave|so brave|calm)",
    "spare": "(spider|button|feather|sock|pencil|spoon|penny|beetle|crust|nail)",
    "hugA": HUG.format("{A.him}"),
    "hugB": HUG.format("{B.him}"),
    "helpedB": "(helped {B.him} up|pulled {B.him} out|gave {B.him} a hand)",
}
