# ruff: noqa: E501  (a template or a word list is read as one line)
"""What the stories are about: names, toys, foods, animals, places, and how each may be described."""

GIRLS = (
    "Lily Mia Anna Sara Emma Zoe Ella Lucy Rosa Nina Ruby Ivy Maya Clara Hana Eva Leah Kate Molly Jane Tess Nora Amy "
    "Daisy Sue Alice Freya Wren Meg Polly Greta Ada"
).split()
BOYS = (
    "Tom Ben Max Sam Leo Tim Jack Noah Finn Omar Luke Jake Dan Eli Hugo Adam Oscar Ravi Theo Kit Joe Bobby Nick Owen "
    "Felix Peter Gus Hal Ned Will/propn.person Arlo Otto"
).split()

# toys as things to hold; plural ones take "some"
TOYS = (
    "ball doll kite drum teddy robot truck train puppet top whistle scooter wagon boat rocket car plane crown trumpet "
    "guitar balloon hoop flute mask cape dinosaur dragon bell wand necklace hat bike book sled rattle puzzle spinner"
).split()
TOYS_PLURAL = "blocks marbles crayons skates stickers paints beads".split()
SMALL_TOYS = (
    "ball doll kite drum teddy robot truck train puppet top whistle boat rocket car plane crown trumpet flute mask "
    "dinosaur dragon bell wand necklace hat book rattle spinner ring button key coin scarf mitten watch/noun.thing"
).split()
TOY_LOOKS = "new old little tiny shiny bright pretty lovely special fancy painted striped spotted".split()
COLOURS = "red blue green yellow orange purple pink white black brown golden silver gray".split()

FOODS = (
    "apple pear plum peach banana cherry strawberry cookie muffin pancake sandwich cake pie bun carrot potato tomato "
    "berry grape lemon orange/noun.food biscuit candy donut cupcake egg nut melon"
).split()
SNACKS = "cookie muffin pancake sandwich bun cupcake donut biscuit apple pear peach plum banana orange/noun.food pie melon".split()
FOOD_LOOKS = "sweet big small warm fresh tasty round yummy juicy soft ripe sticky".split()
DRINKS = "milk juice tea water cocoa lemonade soup".split()

PETS = "puppy kitten rabbit hamster parrot turtle pony".split()
WILD = "squirrel hedgehog owl robin fox deer mouse frog crow snail otter beaver badger mole".split()
YOUNG = "kitten puppy duckling chick lamb calf piglet foal rabbit fawn gosling".split()
SEEN = (
    "squirrel hedgehog owl robin fox deer mouse frog crow snail duck goose swan bee butterfly ladybug goat sheep cow hen "
    "horse donkey pigeon beetle spider fish toad lizard"
).split()
ANIMAL_LOOKS = "small fluffy gray brown white young tiny thin clever friendly black golden sleepy".split()
ANIMAL_NAMES = "Biscuit Pip Dot Coco Pepper Mocha Star Button Patch Fudge Bean Socks".split()

# outdoor places: the noun and the words for being there
PLACES = {
    "park": "in", "garden": "in", "beach": "on", "forest": "in", "farm": "on", "playground": "in", "lake": "by",
    "meadow": "in", "river": "by", "hill": "on", "market": "at", "zoo": "at", "barn": "in", "pond": "by",
    "orchard": "in", "village": "in", "field": "in", "harbor": "at", "school": "at", "library": "in", "museum": "in",
    "square": "in",
}  # fmt: skip
PLAY_PLACES = "park garden beach meadow playground field farm lake river orchard hill".split()

# where a thing can lie: the noun and the ways to lie there
SPOTS_OUT = {
    "bench": "under behind on", "tree": "under behind", "bush": "under behind in", "gate": "behind beside",
    "fence": "behind beside", "rock": "behind under on", "log": "inside under behind", "bridge": "under on",
    "swing": "under on", "slide": "under on", "well/noun.place": "beside behind", "bucket": "inside behind under",
    "wagon": "inside under", "shed": "inside behind", "haystack": "in behind", "statue": "behind beside",
    "fountain": "beside behind", "tent": "inside behind", "wall": "behind on beside", "barrel": "inside behind",
    "cart": "under inside", "sandbox": "in beside", "flowerpot": "inside behind", "stump": "on behind",
}  # fmt: skip
SPOTS_IN = {
    "bed": "under on", "sofa": "under behind on", "table": "under on", "chair": "under on", "rug": "under",
    "shelf": "on", "cupboard": "inside behind", "drawer": "inside", "box": "inside behind under", "basket": "inside under",
    "pillow": "under behind", "blanket": "under", "curtain": "behind", "door": "behind beside", "lamp": "behind beside",
    "desk": "under on", "closet": "inside", "piano": "under behind on", "bathtub": "inside", "bookcase": "behind on",
    "clock": "behind", "stove": "beside behind", "boot": "inside", "teapot": "inside behind", "trunk": "inside",
}  # fmt: skip
NATURAL = {"tree", "bush", "rock", "log", "stump", "haystack"}
NATURAL_LOOKS = "old big little low gray green".split()
SPOT_LOOKS = "old big little tall wooden green red dusty broken wide low white".split()

TRAITS = "kind brave shy curious clever gentle cheerful quiet patient honest careful playful lively stubborn".split()
JOBS_WOMAN = "baker farmer teacher nurse gardener librarian painter sailor shopkeeper postwoman".split()
JOBS_MAN = "baker farmer teacher nurse gardener librarian painter sailor shopkeeper postman".split()
KIN = {"mom": "she", "dad": "he", "grandma": "she", "grandpa": "he"}

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
# two words of opposite meaning and the things that can be either
OPPOSITES = tuple(
    (x, y, tuple(nouns.split()))
    for x, y, nouns in (
        ("big", "small", "bag box stone ball boat tree cup"), ("hot", "cold", "drink bun soup bath day pie"),
        ("wet", "dry", "towel coat rock bench sock hat"), ("fast/adj.quality", "slow", "horse boat cart train song walk"),
        ("old", "new", "coat boat bridge clock bag house"), ("soft", "hard/adj.quality", "pillow chair bed bun stone"),
        ("loud", "quiet", "song bell bird drum room street"), ("long", "short", "rope stick path song story ribbon"),
        ("heavy", "light/adj.quality", "bag box stone cart coat"), ("dark", "bright", "room hat path color corner"),
        ("clean", "dirty", "plate cup window boot shirt"), ("full", "empty", "bag cup jar basket box bottle bucket"),
        ("high", "low", "wall branch fence bridge shelf"), ("thick", "thin", "rope book blanket stick branch"),
        ("rough", "smooth", "stone shell board wall"), ("wide", "narrow", "river path road bridge door"),
        ("sweet", "sour", "apple drink berry plum candy"), ("strong", "weak", "rope branch wind voice bridge"),
        ("sharp", "blunt", "knife pencil stick stone"), ("deep", "shallow", "hole pond river puddle dish"),
        ("tall", "tiny", "tree tower house plant flower"), ("straight", "crooked", "stick path road line branch"),
        ("open/adj.quality", "shut/adj.quality", "door window box gate book"),
    )
)  # fmt: skip
IRREGULAR = {
    "puppy": "puppies", "pony": "ponies", "cherry": "cherries", "strawberry": "strawberries", "berry": "berries",
    "candy": "candies", "sandwich": "sandwiches", "peach": "peaches", "potato": "potatoes", "tomato": "tomatoes",
    "mouse": "mice", "fox": "foxes", "goose": "geese", "sheep": "sheep", "fish": "fish", "deer": "deer", "box": "boxes",
    "butterfly": "butterflies", "shelf": "shelves", "child": "children", "leaf": "leaves", "foot": "feet",
    "bush": "bushes", "bench": "benches", "beach": "beaches", "tooth": "teeth", "branch": "branches", "fly": "flies",
    "family": "families", "story": "stories", "party": "parties", "daisy": "daisies", "man": "men", "woman": "women",
    "dish": "dishes", "brush": "brushes", "glass": "glasses", "watch": "watches", "dress": "dresses", "life": "lives",
    "teddy": "teddies", "library": "libraries", "scarf": "scarves", "loaf": "loaves", "calf": "calves",
    "ladybug": "ladybugs", "torch": "torches", "penny": "pennies", "nappy": "nappies", "city": "cities",
    "bus": "buses", "lunch": "lunches", "wish": "wishes", "patch": "patches", "match": "matches", "knife": "knives",
}  # fmt: skip


def plural(noun: str) -> str:
    """The plural of a noun, keeping a label override: `orange/noun.food` gives `oranges/noun.food`."""
    word, slash, labels = noun.partition("/")
    return IRREGULAR.get(word, word + ("es" if word.endswith(("ss", "ch", "sh", "x")) else "s")) + slash + labels
