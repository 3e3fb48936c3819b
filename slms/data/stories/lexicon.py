"""The label sets and the lexicon, which maps a lower-case word to its part of speech and semantic class.

They are built from `lexicon.txt` and `words.txt`. A word in several lists keeps its first labels (`DEFAULT`), which it
has in a template unless the template says otherwise (`light/adj.quality`). `LEXICON`, which labels other text, holds
the labels that each word has most often in the stories.
"""

from slms.data.stories.words import TABLES, WORDS, pairs, plural, sections, table

POS = tuple("none noun propn pron verb aux adj adv adp det num conj part intj punct".split())
SEMANTIC = tuple(
    "none person animal food toy thing place nature body feeling motion speech mind action quality colour number time "
    "function".split()
)
NUMBER = ("none", "sing", "plur")

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
    _add((plural(w) for w in words if w not in WORDS["toys_plural"]), "noun", semantic, "plur")


def _names(*lists: str) -> list[str]:
    return [word for name in lists for word in WORDS[name]]


def _build(lists: dict[str, str]) -> None:
    for name in (*_names("girls", "boys", "animal_names"), "Mom", "Dad", "Grandma", "Grandpa"):
        name = name.partition("/")[0].lower()
        NUMBERED[name, "propn"] = NUMBERED[f"{name}'s", "propn"] = "sing"
    for word in (*WORDS["days"], "August"):
        PROPER[word.lower()] = word
    late = [name for name in lists if name.count(".") == 1 and name.startswith(("verb.", "noun."))]
    for labels in lists:
        if "." in labels and labels not in late:
            _add(lists[labels].split(), *labels.split("."))
    _add(WORDS["numbers"], "num", "number")
    _add(WORDS["colours"], "adj", "colour")
    _add(_names("toy_looks", "food_looks", "animal_looks", "spot_looks", "natural_looks", "traits"), "adj", "quality")
    _add((w for x, y, *_ in TABLES["opposites"] for w in (x, y) if "/" not in w), "adj", "quality")
    _add((*_names("jobs_woman", "jobs_man"), *pairs("kin")), "noun", "person", "sing")
    _add_nouns(_names("foods", "snacks"), "food")
    _add_nouns(_names("pets", "wild", "young", "seen"), "animal")
    _add(WORDS["toys_plural"], "noun", "toy", "plur")
    _add_nouns((*WORDS["toys"], "block", "marble"), "toy")
    _add_nouns(WORDS["things"], "thing")
    _add_nouns(pairs("places"), "place")
    spots = [noun for noun, *_ in TABLES["outdoors"] + TABLES["indoors"]]
    _add_nouns((noun for noun in spots if noun not in WORDS["no_things"]), "thing")
    for labels in late:
        pos, semantic = labels.split(".")
        if pos == "verb":
            _add(lists[labels].split(), pos, semantic)
        else:
            _add_nouns(lists[labels].split(), semantic)
    _add(WORDS["drinks"], "noun", "food", "sing")
    children = _names("girls", "boys")
    _add(children, "propn", "person", "sing")
    _add((f"{n.partition('/')[0]}'s" for n in children), "propn", "person", "sing")
    _add(WORDS["animal_names"], "propn", "animal", "sing")
    for number in ("sing", "plur"):
        for word in lists[number].split():
            for pos in (DEFAULT[word][0], "pron", "det"):
                NUMBERED[word, pos] = number


_LISTS = {name: " ".join(lines) for name, lines in sections("lexicon.txt").items()}
_build(_LISTS)
LEXICON: dict[str, tuple[str, str]] = DEFAULT | {
    word: (labels.split(".")[0], labels.split(".")[1]) for word, labels in table(_LISTS["most_often"])
}
