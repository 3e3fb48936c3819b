"""The figure of a coder draws every estimate at its number, and counts the latents of every coder once."""

import pytest
import torch

from slms.metrics.functional import Interval
from slms.report.coder_figure import coder_figure
from slms.sae.quality import Quality


def quality(fvu, recovered, density, cost=3.0):
    def near(value):
        return Interval(value, value - 0.01, value + 0.02, 900)

    ablated = {"zero": near(1 + cost), "mean": near(1 + cost / 2)}
    shares = {"zero": near(recovered), "mean": near(recovered - 0.1)}
    return Quality(near(4.0), near(fvu), near(1.1), near(1.0), ablated, shares, near(0.1), 0.25, torch.tensor(density))


DENSITIES = [0.0, 0.5, 0.1, 0.001, 0.001, 0.02]
RESULTS = {
    "this coder": quality(0.1, 0.9, DENSITIES),
    "random coder": quality(0.5, -0.4, [0.1] * 6),
    "PCA": quality(0.3, 0.8, [1.0, 1.0]),
    "random model": quality(0.2, 7.0, [0.0] * 6, cost=0.001),
}


def test_marks_stand_where_the_numbers_say():
    fvu, recovered, densities = coder_figure(RESULTS, "a coder").axes
    assert [float(line.get_xdata()[0]) for line in fvu.get_lines()] == [0.1, 0.5, 0.3, 0.2]
    assert [tick.get_text() for tick in fvu.get_yticklabels()] == list(RESULTS)
    found = [float(line.get_xdata()[0]) for line in recovered.get_lines()]
    assert found == pytest.approx([0.9, 0.8, -0.4, -0.5, 0.8, 0.7])  # what cannot be told is left out
    assert "too little" in " ".join(text.get_text() for text in recovered.texts)
    first = fvu.collections[0].get_segments()[0]
    assert first[:, 0].tolist() == pytest.approx([0.09, 0.12])
    named = [text.get_text() for text in densities.get_legend().get_texts()]
    assert [name.split(" (")[0] for name in named] == ["this coder", "random coder", "random model"]
    assert "25.0% of 6 never" in named[0]


def test_every_latent_in_use_is_counted_once():
    densities = coder_figure(RESULTS, "a coder").axes[2]
    counts = [patch.get_data().values for patch in densities.patches]
    assert [sum(values) for values in counts] == [5, 6, 0]
    edges = densities.patches[0].get_data().edges
    assert (edges[0], edges[-1]) == pytest.approx((-3.0, 0.0))
    assert counts[0][0] == 2 and counts[0][-6:].sum() == 1  # .001 twice; .5


def test_a_coder_without_any_use_has_a_figure():
    coder_figure({"this coder": quality(1.0, 0.0, [0.0, 0.0])}, "dead").canvas.draw()
