"""The label sets and the lexicon: lower-case word -> (part of speech, semantic class).

Built from word lists; a word in several lists keeps its first labels, which are what the word is in a template
(`DEFAULT`) unless the template says otherwise (`light/adj.quality`). `LEXICON` holds what each word is most often in
the stories, to label other text.
"""

from slms.data.stories import entities as E
from slms.data.stories.wordlists import NOUNS, OTHERS, PLURAL_WORDS, SINGULAR_WORDS, VERBS

POS = tuple("none noun propn pron verb aux adj adv adp det num conj part intj punct".split())
SEMANTIC = tuple(
    "none person animal food toy thing place nature body feeling motion speech mind action quality colour number time "
    "function".split()
)
NUMBER = ("none", "sing", "plur")

NATURE = ("tree", "bush", "rock", "log", "stump", "well/noun.place")  # spots that are no things

DEFAULT: dict[str, tuple[str, str]] = {}
NUMBERED: dict[tuple[str, str], str] = {}
PROPER: dict[str, str] = {"i": "I"}


def _add(words, pos: str, semantic: str, number: str | None = None) -> None:
    assert pos in POS and semantic in SEMANTIC, (pos, semantic)
    for word in words:
        word = word.partition("/")[0].lower()
        DEFAULT.setdefault(word, (pos, semantic))
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
    for labels, words in OTHERS.items():
        _add(words.split(), *labels.split("."))
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
    _add_nouns(
        (
            w
            for w in (*E.SPOTS_OUT, *E.SPOTS_IN)
            if w not in ("tree", "bush", "rock", "log", "stump", "well/noun.place")
        ),
        "thing",
    )
    for semantic, words in VERBS.items():
        _add(words.split(), "verb", semantic)
    for semantic, words in NOUNS.items():
        _add_nouns(words.split(), semantic)
    _add(E.DRINKS, "noun", "food", "sing")
    _add((*E.GIRLS, *E.BOYS), "propn", "person", "sing")
    _add((f"{n.partition('/')[0]}'s" for n in (*E.GIRLS, *E.BOYS)), "propn", "person", "sing")
    _add(E.ANIMAL_NAMES, "propn", "animal", "sing")
    for number, words in (("sing", SINGULAR_WORDS), ("plur", PLURAL_WORDS)):
        for word in words.split():
            for pos in (DEFAULT[word][0], "pron", "det"):
                NUMBERED[word, pos] = number


_build()

# what these words are most often in the stories, where that is not what an unmarked word of a template is
MOST_OFTEN = {
    "to": "part.function", "will": "propn.person", "well": "noun.place", "shut": "adj.quality", "open": "adj.quality",
    "mom": "propn.person", "dad": "propn.person", "grandma": "propn.person", "grandpa": "propn.person",
    "laugh": "noun.body", "smile": "noun.body", "grin": "noun.body", "bite": "noun.food", "bit": "noun.thing",
    "race": "noun.motion", "fast": "adj.quality", "drop": "noun.nature", "left": "verb.action", "cross": "noun.thing",
    "other": "adj.quality", "paper": "noun.thing", "turn": "noun.thing", "trick": "noun.toy", "covered": "verb.action",
    "step": "noun.motion", "stolen": "verb.action", "hide": "noun.toy", "plant": "noun.nature", "fallen": "verb.motion",
    "start": "noun.time",
}  # fmt: skip
LEXICON: dict[str, tuple[str, str]] = DEFAULT | {
    word: (labels.split(".")[0], labels.split(".")[1]) for word, labels in MOST_OFTEN.items()
}
