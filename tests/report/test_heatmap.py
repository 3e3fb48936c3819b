"""The heatmap has the numbers of its definition, and the right shape."""

import math

import pytest

from slms.measure.schema import Labels, Pathway
from slms.report.heatmap import heatmap_figure, lift_rows

LABELS = Labels(1.0, {"noun": 0.5, "verb": 0.25, "rare": 0.25})


def _pathways(profiles):
    return [Pathway(i, 10, 0.5, profile={"pos": p} if p else {}) for i, p in enumerate(profiles)]


def test_lift_is_clipped_and_sorted_by_preferred_class():
    pathways = _pathways([{"verb": 1.0}, None, {"noun": 0.75, "verb": 0.25}, {"noun": 0.05, "verb": 0.05, "rare": 0.9}])
    rows = lift_rows(pathways, "pos", LABELS, ["noun", "verb", "rare"])
    assert [index for index, _ in rows] == [2, 0, 3, 1]
    values = dict(rows)
    assert values[0] == [-3.0, 2.0, -3.0]
    assert values[2] == pytest.approx([math.log2(1.5), 0.0, -3.0])
    assert values[1] == [0.0, 0.0, 0.0]


def test_one_panel_a_layer_and_a_colour_bar(results_factory):
    results = results_factory(layers=range(5))
    assert len(heatmap_figure(results.pathways, "pos", results.labels["pos"]).axes) == 6


def test_many_classes_are_cut_to_the_commonest(results_factory):
    share = {f"class{i}": (i + 1) / 820 for i in range(40)}
    figure = heatmap_figure({"L0.mlp": _pathways([share])}, "pos", Labels(1.0, share))
    names = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert len(names) == 24 and names[0] == "class39"


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="there is no routed place"):
        heatmap_figure({}, "pos", LABELS)
    with pytest.raises(ValueError, match="no place has a profile of the label family 'mood'"):
        heatmap_figure({"L0.mlp": _pathways([{"noun": 1.0}])}, "mood", LABELS)
