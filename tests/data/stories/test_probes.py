"""Minimal pairs: right by an oracle read off the prompt, balanced, one token each."""

import re

import pytest

from slms.data.stories import LEXICON
from slms.data.stories.probes import GLAD, KINDS, SAD, probe, probes
from slms.data.stories.words import TABLES, WORDS
from slms.models.io import read_tokenizer
from slms.models.source import EMBEDDED

GENDER = {n.partition("/")[0]: he for he, names in (("she", "girls"), ("he", "boys")) for n in WORDS[names]}
VALUE = {word: value for value, word in enumerate(WORDS["numbers"])}
OPPOSITE = {}
for _x, _y, *_ in TABLES["opposites"]:
    _x, _y = _x.partition("/")[0], _y.partition("/")[0]
    OPPOSITE |= {_x: _y, _y: _x}


def ioi(p):
    names = [w for w in re.findall(r"[A-Z]\w+", p.prompt.rpartition("\n\n")[2]) if w in GENDER]
    return next(n for n in reversed(names) if n != names[-1])


def agreement(p):
    subject = re.search(r"[Tt]he (\w+) (?:near|by|behind|beside|next to) the \w+$", p.prompt)[1]
    return "were" if subject.endswith("s") else "was"


def counting(p):
    numbers = re.findall(rf"\b({'|'.join(VALUE)})\b", p.prompt.rpartition("\n\n")[2].lower())
    return WORDS["numbers"][sum(VALUE[n] for n in numbers[-2:])]


def opposites(p):
    return OPPOSITE[re.search(r"(?:is not|opposite of) (\w+)", p.prompt)[1]]


def pronoun(p):
    named = re.findall("|".join(rf"\b{n}\b" for n in GENDER), p.prompt)[-1]
    if "walked" in p.prompt or "Before bed" in p.prompt:
        named = re.findall(r"(\w+) was (?:very|so|really|quite)", p.prompt)[-1] if "Before bed" in p.prompt else named
    return GENDER[named]


def place(p):
    thing = re.search(r"Where (?:is|are) the ([\w ]+)\?", p.prompt)
    speaker = re.findall(r"Then (\w+) remembered", p.prompt)
    puts = re.findall(r"(\w+) put (?:the|some) ([\w ]+?) (?:under|behind|inside|on|beside) the (\w+)", p.prompt)
    if thing:
        return next(spot for _, what, spot in puts if what.split()[-1] == thing[1].split()[-1])
    return next(spot for who, _, spot in puts if who == speaker[0])


def feeling(p):
    loss = re.search(r"lost|missing|gone|broke", p.prompt.rpartition("\n\n")[2])
    return SAD if loss else GLAD


ORACLES = {f.__name__: f for f in (ioi, agreement, counting, opposites, pronoun, place, feeling)}


@pytest.mark.parametrize("kind", KINDS)
def test_answer_is_right_and_foil_wrong(kind):
    for p in probes(kind, 150, seed=1):
        truth = ORACLES[kind](p)
        right = truth if isinstance(truth, tuple) else (truth,)
        assert p.answer.strip() in right, p
        assert p.foil.strip() not in right, p


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_foils_are_words_of_the_corpus_and_one_token(kind):
    tokenizer = read_tokenizer(EMBEDDED["stories-1m"])
    for p in probes(kind, 150):
        for word in (p.answer, p.foil):
            assert word[0] == " " and word.strip().lower() in LEXICON
            assert len(tokenizer.tokenize(word)) == 1, p
            assert tokenizer.tokenize(p.prompt + word)[:-1] == tokenizer.tokenize(p.prompt)


def test_mirror_images_are_balanced():
    for kind in ("agreement", "pronoun"):
        share = [p.answer < p.foil for p in probes(kind, 400)]
        assert 0.4 < sum(share) / 400 < 0.6


def test_probes_are_reproducible_and_differ():
    assert probe("ioi", 3) == probe("ioi", 3) != probe("ioi", 3, seed=1)
    assert len({p.prompt for p in probes("place", 100)}) == 100


def test_unknown_kind_names_the_choices():
    with pytest.raises(ValueError, match="kind is 'rhyme'; it must be one of ioi, agreement"):
        probe("rhyme", 0)
