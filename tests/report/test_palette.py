"""Every figure has its printed size, text that you can read at that size, and colours that you can tell apart."""

import itertools
import math
import random
import re

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from slms.measure.ablation import CausalScore, ClassSums
from slms.measure.attribution import Concentration, LayerAttribution
from slms.measure.causal import Ablation
from slms.measure.compare import compare
from slms.measure.frontier import Cost, Frontier, Point, point_rows
from slms.measure.rows import MEAN, MODEL, Row
from slms.measure.suite import NUMBERS, SuiteModel, verdicts
from slms.metrics.functional import Interval
from slms.report.ablation import ablation_figure
from slms.report.attribution import attribution_figure
from slms.report.coder_figure import coder_figure
from slms.report.compare import compare_figure
from slms.report.evolution import evolution_figure
from slms.report.figures import monosemanticity_figure, utilization_figure
from slms.report.frontier_figure import frontier_figure
from slms.report.heatmap import heatmap_figure
from slms.report.metrics_csv import Logged
from slms.report.palette import COLOURS, MARKERS, PAGE, look, write_figure
from slms.report.probes import probe_figure
from slms.report.specialization_figure import specialization_figure
from slms.report.suite import suite_figure
from slms.sae.quality import Quality

LONG = "a-hub-organisation/a-model-with-a-rather-long-name-1.4b-deduped"


def places(n):
    return [f"L{layer}.mlp" for layer in range(n)]


def near(value):
    return Interval(value, value - 0.02 * abs(value), value + 0.03 * abs(value), 900)


def draw_monosemanticity(make, n, name):
    return monosemanticity_figure(make(layers=range(n), name=name))


def draw_utilization(make, n, name):
    results = make(layers=range(n))
    return utilization_figure(results.rows, results.pathways)


def draw_heatmap(make, n, name):
    results = make(layers=range(min(n, 5)), n_pathways=32)
    return heatmap_figure(results.pathways, "pos", results.labels["pos"])


def draw_evolution(make, n, name):
    rng = random.Random(0)
    rows = [Logged(i, 0, "train", "loss", "lm", 3 + rng.gauss(0, 0.1) - 0.02 * i) for i in range(60)]
    for step in range(0, 60, 6):
        rows += [Logged(step, 0, "val", "loss", "", 3.1 - 0.02 * step)]
        rows += [
            Logged(step, 0, "val", f"si_{f}", "", rng.random()) for f in ("token_class", "pos", "semantic", "number")
        ]
        for metric in ("purity", "entropy", "utilization", "max_load", "stability", "saturation"):
            rows += [Logged(step, 0, "val", metric, place, rng.random()) for place in places(n)]
    return evolution_figure(rows)


def draw_compare(make, n, name):
    runs = [(f"{name} {i}", make(layers=range(0, n, 2), seed=i, nats=1.5 + 0.01 * i, name=name)) for i in range(n)]
    runs.append(("dense", make(layers=(), role="dense", nats=1.49)))
    found = compare(runs)
    return compare_figure(found.runs, [results for _, results in runs])


def draw_frontier(make, n, name):
    rules = [
        "oracle",
        "cett",
        "teal",
        "cats",
        "low_rank",
        "griffin",
        "static",
        "router",
        "gate",
        "dejavu",
        "input",
        "x",
    ]
    points, whole = [], Cost(1.0, 1.0, 2.0, 1.0, 2.0)
    dense = Point("dense", "", None, point_rows(near(1.0), near(0.0), whole, whole, {}, {}))
    for i, rule in enumerate(rules[:n]):
        for density in (0.2, 0.35, 0.5, 0.75, 1.0):
            speed = {"mlp_speedup": 2.0, "model_speedup": 1.6 - density + 0.05 * i}
            cost = Cost(density, density + 0.01 * i, 1 + density, 1.0, 2.0)
            ratio = near(math.log1p(0.01 * 2.0 ** (i - 9 * density)))
            rows = point_rows(near(1.0), ratio, cost, whole, {"decode": speed, "prefill": speed}, {})
            points.append(Point("routed" if i == 1 else "dense", rule, density, rows))
    device = "AMD EPYC 9B14 96-Core Processor, 1 thread, float32, torch 2.13.0+cpu"
    return frontier_figure(Frontier(dense, points, device), f"{name}: what skipping costs")


def draw_coder(make, n, name):
    def quality(fvu, recovered):
        ablated = {"zero": near(4.0), "mean": near(2.0)}
        shares = {"zero": near(recovered), "mean": near(recovered - 0.1)}
        density = 10 ** -(3 * torch.rand(256, generator=torch.Generator().manual_seed(n)))
        return Quality(near(4.0), near(fvu), near(1.1), near(1.0), ablated, shares, near(0.1), 0.25, density)

    names = ["this coder", "random coder", "dense random decoder", "on a random model", "PCA"]
    found = {coder: quality(0.1 + 0.15 * i, 0.95 - 0.2 * i) for i, coder in enumerate(names[: max(n, 2)])}
    return coder_figure(found, f"{name}: batch_topk coder of 4,096 latents at residual.3", "4,096 tokens of stories")


def draw_specialization(make, n, name):
    rng = random.Random(0)

    def row(place, metric, family, value):
        return Row(place, metric, family, value + rng.gauss(0, 0.02), value - 0.1, value + 0.1, 0.01, 0.01, value / 3)

    metrics = [("sparsity", f, 0.5) for f in ("gini", "top_mass", "participation")]
    metrics += [("si", f, 0.2) for f in ("token_class", "pos", "semantic", "frequency", "number", "domain")]
    metrics += [("coherence", "", 0.1), ("q", "", 0.3), ("q_partition", "", 0.05)]
    return specialization_figure([row(p, *metric) for p in places(n) for metric in metrics], name, "neurons")


def draw_probes(make, n, name):
    rows = [
        row
        for i in range(n)
        for task, value in [(f"subject_verb_agreement_{i}", 0.8 - 0.03 * i)]
        for row in (
            Row(MODEL, "accuracy", task, value, value - 0.1, value + 0.07, control=0.5, n=60),
            Row(MODEL, "blind", task, 0.6, n=60),
        )
    ]
    return probe_figure(name, rows)


def draw_ablation(make, n, name):
    draw = torch.Generator().manual_seed(0)
    classes = ["noun", "verb", "adjective", "punctuation", "pronoun", "preposition", "conjunction", "determiner"]

    def found(place):
        sums = torch.rand(2, 16, len(classes), generator=draw).double() ** 6
        totals, empty = torch.full((2, len(classes)), 500.0).double(), torch.zeros(16)
        counts = ClassSums(sums, totals, sums[None], totals[None])
        rest = (empty, empty, 8, empty, empty, (empty, empty), 2)
        score, control = (CausalScore(v, v - 0.03, v + 0.04, 0.1, 0.01, *rest) for v in (0.3, 0.05))
        return Ablation(place, "pathway", torch.arange(64) // 4, {"pos": counts}, {"pos": score}, {"pos": control})

    return ablation_figure(name, [found(place) for place in places(min(n, 5))], "pos", classes)


def draw_attribution(make, n, name):
    draw = torch.Generator().manual_seed(0)
    found = []
    for layer in range(min(n, 3)):
        load, part = torch.rand(16, generator=draw), torch.rand(16, 300, generator=draw) ** 6
        z, lift = 6 * torch.rand(16, 300, generator=draw), torch.ones(16, 300)
        found.append(LayerAttribution(layer, load, part, z, lift, Concentration(0.3, 0.2, 0.01, 10.0)))
    return attribution_figure(found, 4.0, f"Which pathway writes which feature of residual.3: {name}")


def draw_suite(make, n, name):
    rng = random.Random(0)

    def model(i):
        rows = {}
        for m in NUMBERS:
            value = 0.1 + 0.03 * i + rng.gauss(0, 0.01)
            rows[m] = Row(MEAN, "si", "pos", value, value - 0.02, value + 0.02, control=0.05)
        return SuiteModel(f"m{i}", f"m{i}", int(10 ** (5 + i / 4)), 10**7, 8, 2, 2.0, 100_000, rows)

    models = [model(i) for i in range(max(n, 2))]
    return suite_figure(name, models, [], verdicts(models))


FIGURES = {name.removeprefix("draw_"): draw for name, draw in globals().items() if name.startswith("draw_")}
SIZES = {"small": (1, "stories-1m"), "large": (12, LONG)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.filterwarnings("error")  # constrained layout warns where it finds no room
def test_a_figure_can_be_printed(results_factory, texts, overlaps, name, size):
    """Two columns wide, no text below 7 points, over another or over the edge, no legend on data."""
    figure = FIGURES[name](results_factory, *SIZES[size])
    found = texts(figure)
    assert figure.get_size_inches()[0] == PAGE and figure.dpi == 200
    assert min(t.get_fontsize() for t, _ in found) >= 7
    assert overlaps(found) == []
    width, height = figure.canvas.get_width_height()
    assert [t.get_text() for t, b in found if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height] == []
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is None or not axes.bbox.padded(-1).overlaps(legend.get_window_extent())
        assert axes.get_ylabel() or not counts(axes), "an axis without its unit"


def counts(axes):
    """Whether the ticks of the y axis are numbers, named on this panel."""
    named = [t.get_text().replace("−", "-") for t in axes.get_yticklabels() if t.get_visible() and t.get_text()]
    return axes.axison and named != [] and all(re.fullmatch(r"-?[\d.]+", name) for name in named)


def test_the_overlap_check_can_fail(results_factory, texts, overlaps):
    figure = FIGURES["probes"](results_factory, 3, "m")
    figure.text(0.05, 0.95, "written over the headline")
    assert len(overlaps(texts(figure))) == 1


def test_files_are_png_and_svg_of_the_same_bytes_whatever_you_have_set(results_factory, tmp_path):
    """Your own settings of matplotlib are neither used nor changed."""
    plain = write_figure(tmp_path / "plain.png", FIGURES["suite"](results_factory, 4, "m"))
    with matplotlib.rc_context({"font.size": 30, "savefig.bbox": "tight", "axes.grid": False, "svg.hashsalt": None}):
        before = dict(matplotlib.rcParams)
        mine = write_figure(tmp_path / "mine.png", FIGURES["suite"](results_factory, 4, "m"))
        assert dict(matplotlib.rcParams) == before
    assert mine.read_bytes() == plain.read_bytes()
    svg = plain.with_suffix(".svg").read_bytes()
    assert mine.with_suffix(".svg").read_bytes() == svg
    assert svg.startswith(b"<?xml") and b"<dc:date>" not in svg
    head = plain.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(head[16:20]) == 200 * PAGE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.png", "mine.svg", "plain.png", "plain.svg"]


def test_a_figure_that_was_written_can_be_drawn_again(results_factory, tmp_path):
    figure = FIGURES["suite"](results_factory, 4, "m")
    first = write_figure(tmp_path / "a.png", figure).read_bytes()
    assert write_figure(tmp_path / "b.png", figure).read_bytes() == first


def test_no_two_of_many_series_look_alike():
    assert len({look(i) for i in range(49)}) == 49 and look(0) == (COLOURS[0], MARKERS[0])


# Machado, Oliveira & Fernandes (2009), severity 1.0, on linear RGB
DEFICIENCIES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _linear(colour):
    return np.array([(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in to_rgb(colour)])


def _lab(linear):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    ratio = xyz / [0.9505, 1.0, 1.089]
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", DEFICIENCIES)
def test_every_pair_of_colours_differs_clearly(kind):
    """CIE76 distance above 15 (2.3 is just noticeable); shapes of markers differ besides."""
    seen = [_lab(np.clip(np.array(DEFICIENCIES[kind]) @ _linear(colour), 0, 1)) for colour in COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_colours_differ_when_printed_in_grey():
    lightness = sorted(_lab(_linear(colour))[0] for colour in COLOURS)
    assert min(b - a for a, b in itertools.pairwise(lightness)) > 8 and lightness[-1] < 85
