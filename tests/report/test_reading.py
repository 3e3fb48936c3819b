"""Readings of results: visible tokens, preferred classes, orders."""

import pytest

from slms.measure.schema import Pathway
from slms.report.reading import families, preferred_class, shorten, top_pathways, visible


@pytest.mark.parametrize(
    "token, shown",
    [(" the", "␣the"), ("\n", "⏎"), ("a\tb", "a⇥b"), ("", ""), ("\xa0", "\\xa0"), ("日", "\\u65e5"), ("é", "é"),
     ("x" * 14, "x" * 14), ("x" * 15, "x" * 13 + "…"), ("\udce2", "\\udce2")],
)  # fmt: skip
def test_visible(token, shown):
    assert visible(token) == shown


def test_visible_is_one_printable_word_for_any_character():
    for code in range(0x3000):
        shown = visible(chr(code))
        assert shown.isprintable() and not any(c.isspace() for c in shown) and 0 < len(shown) <= 14


def test_shorten_keeps_both_ends():
    assert shorten("abc", 3) == "abc"
    assert len(shorten("a" * 50 + "end", 20)) == 20 and shorten("a" * 50 + "end", 20).endswith("end")


def test_preferred_class_is_the_largest_contribution_to_the_divergence():
    share = {"noun": 0.6, "verb": 0.39, "rare": 0.01}
    pathway = Pathway(0, 9, 0.1, profile={"pos": {"noun": 0.62, "verb": 0.36, "rare": 0.02}})
    # noun .62·ln(.62/.6) = .0203, verb negative, rare .02·ln 2 = .0139
    assert preferred_class(pathway, "pos", share) == "noun"
    assert preferred_class(pathway, "other", share) is None
    assert preferred_class(Pathway(0, 0, 0.0), "pos", share) is None


def test_families_sorted_by_mean_si(results_factory):
    results = results_factory()
    means = {f: sum(layer.si[f].value for layer in results.layers) for f in ("pos", "semantic", "frequency")}
    assert families(results) == sorted(means, key=lambda f: -means[f])


def test_top_pathways_serve_every_layer_before_any_twice(results_factory):
    layers = results_factory(layers=range(5)).layers
    for rows in (3, 5, 7, 200):
        top = top_pathways(layers, rows)
        counts = [sum(layer.layer == i for layer, _ in top) for i in range(5)]
        assert len(top) == min(rows, 80) and max(counts) - min(counts) <= 1
        assert [layer.layer for layer, _ in top] == sorted(layer.layer for layer, _ in top)
