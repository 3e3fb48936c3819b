"""Turns tokens and names into short printable words, for tables, figures and Markdown."""

import re
from functools import cache

MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}  # whitespace is part of a token, so it is shown


@cache
def _drawable() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans Mono"))).get_charmap())


def visible(token: str, width: int = 14) -> str:
    r"""A token as one short printable word: whitespace marked, undrawable characters escaped, long tokens cut by "…".

    >>> visible(" the"), visible("\n\n"), visible("internationalisation", 8)
    ('␣the', '⏎⏎', 'interna…')
    """
    shown = "".join(MARKS.get(char) or (char if _plain(char) else _escape(char)) for char in token[: 4 * width])
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def markdown(text: str) -> str:
    r"""Any text as one line of Markdown that only shows the text, even inside a table.

    >>> markdown("a|b *c*\n<d>")
    'a&#124;b &#42;c&#42;⏎&#60;d&#62;'
    """
    marked = "".join(MARKS[char] if char in "\n\t\r" else char for char in text)
    return re.sub(r"[\\`*_{}\[\]()#+\-.!|<>~&]", lambda found: f"&#{ord(found.group())};", marked)


def _plain(char: str) -> bool:
    return char.isprintable() and ord(char) in _drawable()


def _escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) > 0xFF else f"\\x{ord(char):02x}"


def shorten(name: str, width: int = 30) -> str:
    """Shorten a long name in its middle, because both ends tell runs apart.

    >>> shorten("routed_tinystories-embedded 20250101-120000", 24)
    'routed_tinys…0101-120000'
    """
    return name if len(name) <= width else f"{name[: width // 2]}…{name[len(name) - (width - width // 2 - 1) :]}"
