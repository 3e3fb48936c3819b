"""Lines of a text file: what belongs below what, and where a mistake is."""

import pytest

from slms.data.stories import lines
from slms.data.stories.lines import TextError, located, read


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "HERE", tmp_path)
    return lambda text: (tmp_path / "a.txt").write_text(text) and "a.txt"


def shape(found):
    return [(line.where, line.text, line.apart, shape(line.below)) for line in found]


def test_lines_stand_below_those_that_they_are_indented_under(written):
    text = "# a comment\na: b\n  c\n    d\n  e\n\n  f\n\ng\n"
    d, e, f = ("a.txt:4", "d", False, []), ("a.txt:5", "e", False, []), ("a.txt:7", "f", True, [])
    below = [("a.txt:3", "c", False, [d]), e, f]
    assert shape(read(written(text))) == [("a.txt:2", "a: b", True, below), ("a.txt:9", "g", True, [])]


@pytest.mark.parametrize(
    "text, number",
    [("  a\n", 1), ("a\n   b\n", 2), ("a\n    b\n", 2), ("a\n\n  b\nc\n  d\n      e\n", 6), ("a\n\t\tb\n", 2)],
)
def test_a_wrong_indentation_names_its_line(written, text, number):
    with pytest.raises(TextError, match=rf"^a\.txt:{number}: is indented by \d; it must be"):
        read(written(text))


def test_errors_are_located_once(written):
    (line,) = read(written("a\n"))
    assert str(located(line, ValueError("too long"))) == "a.txt:1: too long"
    assert str(located(line, KeyError("G.his"))) == "a.txt:1: no line above gives 'G.his'"
    assert str(located(line, located(line._replace(where="b.txt:7"), ValueError("too long")))) == "b.txt:7: too long"
