"""The four panels draw the numbers of the results, whatever they hold."""

from dataclasses import replace

import pytest

from slms.measure.rows import Row
from slms.measure.schema import Token
from slms.report.figures import TABLE_ROWS, monosemanticity_figure, top_pathways
from slms.report.palette import COLOURS


@pytest.fixture
def said(texts):
    """The texts of a figure."""
    return lambda figure: [t.get_text() for t, _ in texts(figure)]


def test_many_places_have_room(results_factory, texts, overlaps):
    found = texts(monosemanticity_figure(results_factory(layers=range(24))))
    assert len(found) > 100 and overlaps(found) == []


def _with_tokens(results, texts):
    tokens = [Token(text, 5, 2.0) for text in texts]
    odd = {place: [replace(p, top_tokens=tokens) for p in found] for place, found in results.pathways.items()}
    return replace(results, pathways=odd)


@pytest.mark.filterwarnings("error")  # matplotlib warns about glyphs that its font lacks
def test_odd_tokens_are_visible_and_no_mathtext(results_factory, texts, overlaps):
    odd = ["$x^2$", "\n\n", "\t", "日本", "\U0001f600", "\udce2", "\x00", "  ", "W" * 60, "_{", "\\frac"]
    found = texts(monosemanticity_figure(_with_tokens(results_factory(), odd)))
    assert overlaps(found) == []
    line = next(t.get_text() for t, _ in found if t.get_text().startswith("$x^2$"))
    assert line.startswith("$x^2$  ⏎⏎  ⇥  \\u65e5\\u672c  ")


def test_table_shows_the_purest_of_every_layer(results_factory, said):
    results = results_factory(layers=(0, 2, 4, 6))
    cells = said(monosemanticity_figure(results))
    for place, found in results.pathways.items():
        best = max(found, key=lambda p: p.purity)
        assert f"{place.removesuffix('.mlp')} p{best.index}" in cells
    assert sum(cell[0] == "L" and " p" in cell for cell in cells) == TABLE_ROWS


def test_headline_names_losses_and_active_fraction(results_factory, said):
    cells = said(monosemanticity_figure(results_factory()))
    assert any("dense 1.5170 → routed 1.5300 nats/token" in cell and "62% of MLP" in cell for cell in cells)


def test_draws_without_intervals_nulls_labels_or_tokens(results_factory, texts, overlaps):
    results = results_factory(layers=(0, 1))
    bare = {
        place: [replace(p, purity=None if p.index else 0.3, top_tokens=[], profile={}) for p in found]
        for place, found in results.pathways.items()
    }
    rows, losses = [Row(place, "purity", value=0.2) for place in bare], replace(results.losses, dense=None)
    figure = monosemanticity_figure(replace(results, rows=rows, pathways=bare, labels={}, compute=None, losses=losses))
    found = texts(figure)
    assert overlaps(found) == [] and any("the data carry no labels" in t.get_text() for t, _ in found)


def test_many_label_families_and_classes(results_factory, texts, overlaps):
    results = results_factory(layers=(0, 1))
    rows = [Row(place, "si", f"family number {i}", 0.1 * i) for place in results.places for i in range(12)]
    assert overlaps(texts(monosemanticity_figure(replace(results, rows=rows)))) == []


def test_dense_run_has_nothing_to_draw(results_factory):
    with pytest.raises(ValueError, match="no routed place"):
        monosemanticity_figure(results_factory(layers=(), role="dense"))


def test_top_pathways_serve_every_place_before_any_twice(results_factory):
    pathways = results_factory(layers=range(5)).pathways
    for rows in (3, 5, 7, 200):
        top = [place for place, _ in top_pathways(pathways, rows)]
        counts = [top.count(place) for place in pathways]
        assert len(top) == min(rows, 80) and max(counts) - min(counts) <= 1
        assert top == sorted(top)


def test_top_pathways_are_used_ones(results_factory):
    """A pathway with less than a tenth of the mean load is not shown, however pure the few tokens are that it had."""
    pathways = results_factory(layers=(0, 1)).pathways
    hardly = {
        place: [replace(p, load=0.09 / 16, purity=0.99) if p.index < 5 else p for p in found]
        for place, found in pathways.items()
    }
    top = top_pathways(hardly, 200)
    assert len(top) == 2 * 11 and all(pathway.index >= 5 for _, pathway in top)


@pytest.mark.parametrize("beyond", [0, 1, 2, 5])
def test_classes_that_no_colour_is_left_for_are_folded_in_the_plural(results_factory, beyond):
    """Never "1 others", and the words are not a token whose spaces must be seen."""
    results = results_factory(layers=(0,), n_pathways=16)
    names = [f"class {i}" for i in range(len(COLOURS) - 1 + beyond)]
    (place,) = results.places
    found = [replace(p, profile={"pos": {names[i % len(names)]: 1.0}}) for i, p in enumerate(results.pathways[place])]
    share = {name: 1 / len(names) for name in names}
    labels = {"pos": replace(results.labels["pos"], share=share)}
    rows = [row for row in results.rows if row.metric != "si" or row.family == "pos"]
    figure = monosemanticity_figure(replace(results, rows=rows, pathways={place: found}, labels=labels))
    legends = [axes.get_legend() for axes in figure.axes]
    said = [text.get_text() for legend in legends if legend for text in legend.get_texts()]
    others = [t for t in said if "other" in t]
    assert others == ([f"{beyond} others"] if beyond > 1 else [])
    assert len({t for t in said if t.startswith("class")}) == len(names) - (beyond if beyond > 1 else 0)
