"""Small readings of a results file that the table, the figures and TensorBoard share."""

import math
import re
from functools import cache

from slms.measure.schema import Estimate, Layer, Pathway, Results

MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}  # a token's whitespace is part of it: show it


@cache
def _drawable() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans Mono"))).get_charmap())


def visible(token: str, width: int = 14) -> str:
    r"""A token as one short printable word: whitespace marked, what no font draws escaped, long tokens cut with "…".

    >>> visible(" the"), visible("\n\n"), visible("internationalisation", 8)
    ('␣the', '⏎⏎', 'interna…')
    """
    shown = "".join(MARKS.get(char) or (char if _plain(char) else _escape(char)) for char in token[: 4 * width])
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def markdown(text: str) -> str:
    r"""Any text as one line of Markdown that shows it and does nothing else, inside a table too.

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
    """A long name with its middle left out: both ends tell runs apart.

    >>> shorten("routed_tinystories-embedded 20250101-120000", 24)
    'routed_tinys…0101-120000'
    """
    return name if len(name) <= width else f"{name[: width // 2]}…{name[len(name) - (width - width // 2 - 1) :]}"


def preferred_class(pathway: Pathway, family: str, share: dict[str, float]) -> str | None:
    """The class that contributes most to KL(p(class | pathway) ‖ p(class)), so neither the commonest nor the rarest.

    >>> pathway = Pathway(0, tokens=9, load=0.1, profile={"pos": {"noun": 0.6, "verb": 0.4}})
    >>> preferred_class(pathway, "pos", share={"noun": 0.7, "verb": 0.3})
    'verb'
    """
    profile = pathway.profile.get(family, {})
    gains = {name: p * math.log(p / share[name]) for name, p in profile.items() if p > 0 and share.get(name, 0) > 0}
    return max(gains, key=lambda name: gains[name]) if gains else None


def families(results: Results) -> list[str]:
    """Label families, the one with the highest mean SI first (then by name)."""
    names = sorted({family for layer in results.layers for family in layer.si})
    return sorted(names, key=lambda name: -mean_of([layer.si[name] for layer in results.layers if name in layer.si]))


def mean_of(estimates: list[Estimate]) -> float:
    """Mean of the measured values; −inf where there is none, so that such a family sorts last."""
    values = [estimate.value for estimate in estimates if estimate.value is not None]
    return sum(values) / len(values) if values else -math.inf


def top_pathways(layers: list[Layer], rows: int) -> list[tuple[Layer, Pathway]]:
    """At most `rows` pathways by purity, the best of every layer before the second best of any; in layer order."""
    ranked = []
    for layer in layers:
        used = sorted((p for p in layer.pathways if p.purity is not None), key=lambda p: -(p.purity or 0.0))
        ranked += [(rank, -(pathway.purity or 0.0), layer, pathway) for rank, pathway in enumerate(used)]
    chosen = sorted(ranked, key=lambda item: item[:2])[:rows]
    chosen.sort(key=lambda item: (item[2].layer, item[1]))
    return [(layer, pathway) for _, _, layer, pathway in chosen]
