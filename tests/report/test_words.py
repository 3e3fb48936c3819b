"""Tokens and names as short printable words."""

import pytest

from slms.report.words import shorten, visible


@pytest.mark.parametrize(
    "token, shown",
    [
        (" the", "␣the"),
        ("\n", "⏎"),
        ("a\tb", "a⇥b"),
        ("", ""),
        ("\xa0", "\\xa0"),
        ("日", "\\u65e5"),
        ("é", "é"),
        ("x" * 14, "x" * 14),
        ("x" * 15, "x" * 13 + "…"),
        ("\udce2", "\\udce2"),
    ],
)
def test_visible(token, shown):
    assert visible(token) == shown


def test_visible_is_one_printable_word_for_any_character():
    for code in range(0x3000):
        shown = visible(chr(code))
        assert shown.isprintable() and not any(c.isspace() for c in shown) and 0 < len(shown) <= 14


def test_shorten_keeps_both_ends():
    assert shorten("abc", 3) == "abc"
    assert len(shorten("a" * 50 + "end", 20)) == 20 and shorten("a" * 50 + "end", 20).endswith("end")
