"""The label sets and the lexicon: lower-case word -> (part of speech, semantic class).

Built from word lists. A word in several lists keeps its first labels; templates override where a word means something
else (`light/adj.quality`).
"""

from slms.data.stories import entities as E
from slms.data.stories.wordlists import NOUNS, OTHERS, PLURAL_WORDS, SINGULAR_WORDS, VERBS

POS = ("none", "noun", "propn", "pron", "verb", "aux", "adj", "adv", "adp", "det", "num", "conj", "part", "intj", "punct")
SEMANTIC = (
    "none", "person", "animal", "food", "toy", "thing", "place", "nature", "body", "feeling", "motion", "speech", "mind",
    "action", "quality", "colour", "number", "time", "function",
)  # fmt: skip
NUMBER = ("none", "sing", "plur")

LEXICON: dict[str, tuple[str, str]] = {}
NUMBERED: dict[tuple[str, str], str] = {}
PROPER: dict[str, str] = {"i": "I"}


def _add(words, pos: str, semantic: str, number: str | None = None) -> None:
    assert pos in POS and semantic in SEMANTIC, (pos, semantic)
    for word in words:
        word = word.partition("/")[0].lower()
        LEXICON.setdefault(word, (pos, semantic))
        if number:
            NUMBERED.setdefault((word, pos), number)


def _add_nouns(words, semantic: str) -> None:
    words = [w.partition("/")[0] for w in words]
    _add(words, "noun", semantic, "sing")
    _add((E.plural(w) for w in words if w not in E.TOYS_PLURAL), "noun", semantic, "plur")


def _build() -> None:
    for name in (*E.GIRLS, *E.BOYS, *E.ANIMAL_NAMES, "Mom", "Dad", "Grandma", "Grandpa"):
        name = name.partition("/")[0].lower()
        NUMBERED[name, "propn"] = NUMBERED[f"{name}'s", "propn"] = "sing"
    for word in (*E.DAYS, "August"):
        PROPER[word.lower()] = word
    for (pos, semantic, number), words in OTHERS.items():
        _add(words.split(), pos, semantic, number)
    _add(E.NUMBERS, "num", "number")
    _add(E.COLOURS, "adj", "colour")
    _add((*E.TOY_LOOKS, *E.FOOD_LOOKS, *E.ANIMAL_LOOKS, *E.SPOT_LOOKS, *E.NATURAL_LOOKS, *E.TRAITS), "adj", "quality")
    _add((w for x, y, _ in E.OPPOSITES for w in (x, y) if "/" not in w), "adj", "quality")
    _add((*E.JOBS_WOMAN, *E.JOBS_MAN, *E.KIN), "noun", "person", "sing")
    _add_nouns((*E.FOODS, *E.SNACKS), "food")
    _add_nouns((*E.PETS, *E.WILD, *E.YOUNG, *E.SEEN), "animal")
    _add(E.TOYS_PLURAL, "noun", "toy", "plur")
    _add_nouns((*E.TOYS, "block", "marble"), "toy")
    _add_nouns(("button", "key", "coin", "scarf", "mitten", "watch", "ring"), "thing")
    _add_nouns(E.PLACES, "place")
    _add_nouns((w for w in (*E.SPOTS_OUT, *E.SPOTS_IN) if w not in ("tree", "bush", "rock", "log", "stump")), "thing")
    for semantic, words in VERBS.items():
        _add(words.split(), "verb", semantic)
    for semantic, words in NOUNS.items():
        _add_nouns(words.split(), semantic)
    _add(E.DRINKS, "noun", "food", "sing")
    _add((*E.GIRLS, *E.BOYS), "propn", "person", "sing")
    _add((f"{n.partition('/')[0]}'s" for n in (*E.GIRLS, *E.BOYS)), "propn", "person", "sing")
    for number, words in (("sing", SINGULAR_WORDS), ("plur", PLURAL_WORDS)):
        for word in words.split():
            NUMBERED[word, LEXICON[word][0]] = number


_build()
