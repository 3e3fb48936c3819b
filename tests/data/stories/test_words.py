"""The word lists read from text: sections, tables, phrases, plurals; and that every list and phrase is used."""

import re

import pytest

from slms.data.stories import lines
from slms.data.stories.lines import HERE, TextError
from slms.data.stories.template import compile_template
from slms.data.stories.words import PHRASES, TABLES, WORDS, listed, pairs, plural, sections, table

TEXT = "".join(path.read_text() for path in sorted(HERE.rglob("*")) if path.suffix in (".py", ".txt"))


def test_a_section_is_a_line_or_the_lines_below(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "HERE", tmp_path)
    (tmp_path / "a.txt").write_text("# words\npets: cat dog\n\nwild:\n  fox owl\n  deer: two\n")
    assert sections("a.txt") == {"pets": ["cat dog"], "wild": ["fox owl", "deer: two"]}


@pytest.mark.parametrize("text", ["pets: cat\nwild\n", "pets: cat\npets: dog\n"])
def test_a_line_without_a_new_name_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setattr(lines, "HERE", tmp_path)
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(TextError, match=r"^a\.txt:2: '.*' must be a new name, a colon and a text$"):
        sections("a.txt")


def test_tables_and_lists():
    assert table("bench under on, tree behind") == (("bench", "under", "on"), ("tree", "behind"))
    assert WORDS["pets"][:2] == ("puppy", "kitten") and pairs("kin")["grandma"] == "she"
    assert listed("cat @pets dog") == ("cat", *WORDS["pets"], "dog") and listed("") == ()
    with pytest.raises(ValueError, match=r"'@pest' is no list of words\.txt"):
        listed("@pest")


def test_every_list_is_used():
    for name in (*WORDS, *TABLES):
        assert f'"{name}"' in TEXT or f"@{name}" in TEXT, name


def test_every_phrase_compiles_and_is_used():
    for name, text in PHRASES.items():
        compile_template(text.replace("X", "A"))
        used = rf"\${name[:-2]} \{{\w+\}}" if name.endswith(" X") else rf"\$({name}|<\w+>)\b"
        assert re.search(used, TEXT) or name in ("hobby_in", "hobby_out", "beside_one", "beside_many"), name


def test_plurals():
    words = {
        "ball": "balls",
        "dish": "dishes",
        "fox": "foxes",
        "mouse": "mice",
        "orange/noun.food": "oranges/noun.food",
    }
    assert {word: plural(word) for word in words} == words
