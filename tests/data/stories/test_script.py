"""The language of plot files: what each line does, what it draws, and where a mistake is."""

import math
from collections import Counter

import pytest

from slms.data.stories import lines
from slms.data.stories.engine import Teller, finish
from slms.data.stories.lines import TextError
from slms.data.stories.script import Reader, moves, read, run


@pytest.fixture
def steps(tmp_path, monkeypatch):
    known = moves()  # of the package, before the files move
    monkeypatch.setattr(lines, "HERE", tmp_path)

    def made(text):
        (tmp_path / "plot.txt").write_text(text)
        return Reader("plot.txt", known).steps(read("plot.txt"))

    return made


def told(steps, seed="0"):
    t = Teller(seed)
    run(steps, t)
    return "".join(finish(t.out)[0]), t


def outcomes(steps, n=2000):
    """Text → share of the seeds that tell it; each story's nats are those of its share."""
    found = [told(steps, str(i)) for i in range(n)]
    counts = Counter(text for text, _ in found)
    for text, t in found:
        share = math.exp(-t.nats)
        assert counts[text] / n == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n) + 1e-9), text
    return set(counts)


def test_sentences_in_a_row_are_alternatives(steps):
    three = steps("- the dog ran.\n- the cat ran.\n\n- the owl slept.\n")
    assert outcomes(three) == {"The dog ran. The owl slept.", "The cat ran. The owl slept."}


def test_one_sentence_and_one_word_draw_nothing(steps):
    text, t = told(steps("choose way: dog\nparagraph\n- the <way> ran.\nparagraph\n- so it was.\n"))
    assert (text, t.nats) == ("The dog ran.\n\nSo it was.", 0.0)
    assert t.random() == Teller("0").random()


def test_a_choice_is_kept_for_later_lines(steps):
    drawn = "choose animal sound: dog,loud cat,soft\n- the <animal> was <sound>.\n"
    later = "if animal is dog\n  - it ran.\nelse\n  - it slept.\n"
    assert outcomes(steps(drawn + later)) == {"The dog was loud. It ran.", "The cat was soft. It slept."}


def test_maybe_and_words_that_are_not_used_again(steps):
    text = "maybe .25\n  fresh a: dog cat\n  fresh b: dog cat\n  - the <a> and the <b>.\n"
    assert outcomes(steps(text)) == {"", "The dog and the cat.", "The cat and the dog."}
    assert outcomes(steps("maybe 0.5\n  - the dog.\nelse\n  - the cat.\n")) == {"The dog.", "The cat."}


def test_moves_take_roles_words_and_chosen_words(steps):
    text, t = told(
        steps("shows place cause\nanimal D: dog\nchoose who: D\nalias G <who>\nnumber n egg 2 2\n- {G} ate {n}.\n")
    )
    assert text == "Dog ate two eggs." and t.phenomena == {"place", "cause"}
    assert told(steps("people\nchoose part: sighting\n<part>\n"))[0]


def test_names_belong_to_their_file(steps):
    t = Teller("0")
    run(steps("choose number: few\nchoose how: well\n"), t)
    moves()["people"](t)
    moves()["counting"](t)
    assert t.state["<number> of plot.txt"] == "few" and t.state["<how> of plot.txt"] == "well"


MISTAKES = [
    ("traval", "'traval' is no move; the moves are child, kin"),
    ("toy", "`toy` takes role"),
    ("toy o p", "`toy` takes role"),
    ("people A", "`people` takes nothing"),
    (":", "'' is no move"),
    ("-", "'-' is no move"),
    ("animal D: dog zyzzyva", "'zyzzyva' is not in the lexicon"),
    ("animal D: @pest", "'@pest' is no list of words.txt"),
    ("shows magic", "'shows magic' must be `shows` and some of names, agreement"),
    ("shows", "must be `shows`"),
    ("shows place: cause", "must be `shows`"),
    ("paragraph two", "must be `paragraph` alone"),
    ("maybe 2\n  toy o", "must be `maybe` and a probability"),
    ("maybe .5", "must be `maybe` and a probability between 0 and 1, such as .45, with lines indented below"),
    ("maybe .5: toy\n  toy o", "must be `maybe`"),
    ("choose way", "must be `choose NAME: WORD"),
    ("choose: dog", "must be `choose NAME: WORD"),
    ("choose a b: x,y z", "must be `choose NAME: WORD"),
    ("fresh way:", "must be `fresh NAME: WORD"),
    ("if way is dog\n  toy o", "must be `if NAME is WORD`"),
    ("else\n  toy o", "'else' must be right below"),
    ("toy o\n  toy u", "nothing may be indented below 'toy o'"),
    ("- the dog.\n  toy u", "nothing may be indented below a sentence"),
    ("- the zyzzyva ran.", "'zyzzyva' is not in the lexicon"),
    ("- the (dog ran.", "open bracket"),
    ("- the $gladd dog.", r"\$gladd is no phrase of phrases.txt"),
    ("- the <way> ran.", "`<way>` stands for nothing"),
    ("alias G <way>", "`<way>` stands for nothing"),
    ("   toy o", "is indented by 3"),
]


@pytest.mark.parametrize("line, rule", MISTAKES)
def test_a_mistake_names_file_line_and_rule_before_anything_is_told(steps, line, rule):
    with pytest.raises(TextError, match=rf"^plot\.txt:3: .*{rule}") as error:
        steps(f"# a plot\n\n{line}\n")
    assert "\n" not in str(error.value)


def test_a_value_that_no_choice_gives_is_refused(steps):
    with pytest.raises(TextError, match=r"^plot\.txt:2: 'if way is cta' must be `if NAME is WORD`"):
        steps("choose way: dog cat\nif way is cta\n  toy o\n")
    with pytest.raises(TextError, match=r"^plot\.txt:2: 'singing' is no move"):
        steps("choose part: sighting singing\n<part>\n")
    with pytest.raises(TextError, match=r"^plot\.txt:2: the word 'x' is not in the lexicon"):
        steps("choose way: dog x\n- the <way> ran.\n")


@pytest.mark.parametrize(
    "line, rule",
    [
        ("- {G.his} dog.", "no line above gives 'G.his'"),
        ("maybe .0\n  choose way: dog cat\n- the <way>.", "no line above gives '<way> of plot.txt'"),
        ("place p: moon", "'moon' is none of the `places`"),
        ("spot h upstairs", "'upstairs'; it must be indoors or outdoors"),
        ("child C dog", "'dog'; it must be she or he"),
        ("number n egg two 3", "two to 3 must be two whole numbers"),
        ("sum n m s egg 9 9", "18 has no word among the `numbers`"),
        ("noun k said", "'saids' is not in the lexicon"),
        ("animal D: dog\nanimal Z: dog", "has used all of dog"),
    ],
)
def test_a_mistake_that_shows_when_told_names_file_line_and_rule(steps, line, rule):
    number = 1 + line.count("\n")
    made = steps(line)
    with pytest.raises(TextError, match=rf"^plot\.txt:{number}: .*{rule}"):
        told(made)


def test_moves_are_new_names(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "HERE", tmp_path)
    for text in ("toy o\n", "move toy\n  paragraph\n", "move if\n  paragraph\n", "move\n  paragraph\n", "move a\n"):
        (tmp_path / "moves.txt").write_text(text)
        with pytest.raises(TextError, match=r"^moves\.txt:1: '.*' must be `move` and a new name"):
            moves.__wrapped__()
