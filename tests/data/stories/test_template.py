"""Templates: what they print, what they cost, what they refuse."""

import math
from collections import Counter

import pytest

from slms.data.stories.engine import Teller, finish
from slms.data.stories.template import compile_template, piece


def tell(*templates: str, seed: str = "0") -> tuple[str, float]:
    teller = Teller(seed)
    for template in templates:
        teller.say(template)
    return "".join(finish(teller.out)[0]), teller.nats


def test_plain_words_get_capitals_spaces_and_marks():
    text, nats = tell("the dog ran , and the cat slept. was it monday?", "i saw a owl.")
    assert text == "The dog ran, and the cat slept. Was it Monday? I saw an owl."
    assert nats == 0.0


def test_speech_is_quoted_and_attributed():
    assert tell('"run home!" said the dog.')[0] == '"Run home!" said the dog.'
    assert tell('the dog said, "run. it is late." the cat ran.')[0] == 'The dog said, "Run. It is late." The cat ran.'
    assert tell('"run!" ^the dog ran.')[0] == '"Run!" The dog ran.'


def test_choices_are_drawn_and_charged_by_their_probability():
    outcomes = Counter(tell("the (dog|cat|(red|blue) hen) ran.", seed=str(i)) for i in range(3000))
    exact = {"The dog ran.": 1 / 3, "The cat ran.": 1 / 3, "The red hen ran.": 1 / 6, "The blue hen ran.": 1 / 6}
    assert {text for text, _ in outcomes} == set(exact)
    for (text, nats), n in outcomes.items():
        assert math.exp(-nats) == pytest.approx(exact[text])
        assert n / 3000 == pytest.approx(exact[text], abs=4 * math.sqrt(exact[text] / 3000))


def test_pick_fresh_and_chance_are_charged():
    teller = Teller("x")
    teller.pick("abcd")
    assert teller.nats == pytest.approx(math.log(4))
    first, second = teller.fresh("ab"), teller.fresh("ab")
    assert {first, second} == {"a", "b"} and teller.nats == pytest.approx(math.log(4) + math.log(2))
    before = teller.nats
    assert teller.nats - before == 0.0
    happened = teller.chance(0.2)
    assert teller.nats - before == pytest.approx(-math.log(0.2 if happened else 0.8))


def test_to_is_a_particle_before_a_verb():
    program = compile_template("the dog went to the cat to (see|hear) it")
    pos = [p.pos for operation, operand in program for p in (operand if operation == 0 else ()) if p.lower == "to"]
    assert pos == ["adp", "part"]


def test_overrides_change_labels_not_print():
    light = piece("light/adj.quality")
    assert (light.lower, light.pos, light.semantic) == ("light", "adj", "quality")
    assert piece("light").pos == "noun"


@pytest.mark.parametrize(
    "template, message",
    [
        ("the zyzzyva ran", "'zyzzyva' is not in the lexicon"),
        ("the (dog|cat ran", "open bracket"),
        ("the dog) ran", "stray bracket"),
        ('"run', "open quote"),
        ("the dog ran @ home", "character that the grammar does not know"),
        ("{#magic}", "unknown phenomenon 'magic'"),
        ("the dog/noun.magic", "unknown labels"),
    ],
)
def test_a_bad_template_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        compile_template(template)
