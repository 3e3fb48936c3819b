"""Realistic made-up results, which the report tests read, draw and corrupt."""

import itertools
import random

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from slms.measure.results import legacy_block
from slms.measure.rows import MODEL, Row, beside_control
from slms.measure.schema import (
    Base,
    Compute,
    Control,
    ControlRow,
    Data,
    Labels,
    Loss,
    LossDifference,
    Losses,
    Pathway,
    Results,
    Run,
    Token,
)

WORDS = ' the| a|.|,| and| was| little| girl| said|\n| dog| happy| ran| park| Once| upon| to| her|"| Tom|ing'.split("|")
WORDS += [" wonderful", " butterflies", " internationalisation"]
POS = "noun verb adjective adverb pronoun determiner preposition conjunction punctuation"
CLASSES = {
    "pos": POS.split(),
    "semantic": ["animal", "person", "place", "food", "toy", "feeling", "motion", "speech"],
    "frequency": ["rare", "common", "frequent"],
}
N = 200_000


def measured(rng, place, metric, family, value, sd=0.004, chance=0.003):
    return Row(
        place,
        metric,
        family,
        value,
        low=value - 4 * sd,
        high=value + 4 * sd,
        null_mean=chance,
        null_sd=sd,
        ceiling=0.9,
        n=N,
    )


def make_pathways(rng, layer, n_pathways):
    loads = [rng.uniform(0.5, 1.8) for _ in range(n_pathways)]
    total = sum(loads)
    pathways = []
    for index, load in enumerate(loads):
        profile = {}
        for family, names in CLASSES.items():
            weights = [rng.expovariate(1.0) ** 2 + 0.01 for _ in names]
            profile[family] = {name: w / sum(weights) for name, w in zip(names, weights, strict=True)}
        tokens = [Token(word, rng.randrange(5, 9000), rng.uniform(1, 16)) for word in rng.sample(WORDS, 10)]
        purity = min(0.9, rng.betavariate(2, 6) + 0.01 * layer)
        pathways.append(
            Pathway(index, int(load / total * 800_000), load / total, purity, purity + 0.1, 4.1, tokens, profile)
        )
    return pathways


def make_rows(rng, place, pathways, k):
    numbers = {
        "chosen_per_token": float(k),
        "density": k / len(pathways),
        "utilization": 1.0,
        "effective_pathways": 0.93,
        "max_load": len(pathways) * max(pathway.load for pathway in pathways),
    }
    rows = [Row(place, metric, "", value, n=N) for metric, value in numbers.items()]
    rows += [
        measured(rng, place, "purity", "", 0.25 + rng.uniform(-0.05, 0.1)),
        measured(rng, place, "purity_legacy", "", 0.41, chance=0.3),
        measured(rng, place, "entropy", "", 4.2, chance=5.9),
    ]
    rows += [
        measured(rng, place, "si", family, 0.05 * i + 0.1 + rng.uniform(0, 0.1), 0.003)
        for i, family in enumerate(CLASSES, start=1)
    ]
    return [*rows, measured(rng, place, "si_given_token", "pos", 0.02)]


def make_results(layers=(0, 2, 4, 6), n_pathways=16, k=4, role="routed", name="routed_tinystories", seed=0, nats=1.53):
    rng = random.Random(seed)
    pathways = {f"L{layer}.mlp": make_pathways(rng, layer, n_pathways) for layer in layers}
    rows = [row for place, found in pathways.items() for row in make_rows(rng, place, found, k)]
    share = {family: {name: 1 / len(names) for name in names} for family, names in CLASSES.items()}
    controls = make_controls(rng, rows) if rows and role != "static" else {}
    if controls:
        apart = {"control": nats, "difference": 0.5, "difference_low": 0.48, "difference_high": 0.52}
        rows = beside_control(rows, controls["random_router"].rows)
        rows += [Row(MODEL, "choice_nats", name, nats + 0.5, n=8192, **apart) for name in ("oracle", "random_router")]
    return Results(
        run=Run(
            name,
            role,
            "python train.py --config routed_tinystories.yaml",
            "sha256:ab",
            0,
            "2025-01-01T00:00:00Z",
            412.3,
            1200,
            4_915_200,
            {"python": "3.11.9", "slms": "0.1.0"},
            {"device": "cpu", "cores": "2"},
        ),
        base=Base("stories-1m", "embedded", "roneneldan/TinyStories-1M"),
        data=Data("stories", "embedded", 10_000_000, N, 900),
        losses=Losses(
            model=Loss(nats, nats - 0.016, nats + 0.017, 2.718281828**nats, 900, N),
            dense=Loss(1.517, 1.501, 1.533, 4.5585, 900, N),
            difference=LossDifference(nats - 1.517, nats - 1.519, nats - 1.514, 900),
        ),
        compute=Compute(0.625, 2.6e5, 1.9e5, 1.1e6, 1.03e6, 0.27, 0.064),
        routing={"n_pathways": n_pathways, "k": k, "layers": None, "gate": "unit"} if pathways else None,
        rows=rows,
        controls=controls,
        pathways=pathways,
        labels={
            "pos": Labels(0.97, share["pos"]),
            "semantic": Labels(0.41, share["semantic"]),
            "frequency": Labels(1.0, share["frequency"]),
        }
        if pathways
        else {},
        legacy=legacy_block(pathways),
    )


def make_controls(rng, rows):
    """Random routers and k-means beside every number that tables compare."""
    controls = {}
    for name in ("random_router", "geometry"):
        found = []
        for row in rows:
            if row.metric in ("purity", "si", "si_given_token"):
                value = row.value - rng.uniform(-0.02, 0.05)
                apart = row.value - value
                found.append(
                    ControlRow(row.place, row.metric, row.family, value, 0.002, apart, apart - 0.01, apart + 0.01)
                )
        controls[name] = Control(f"what {name} chooses", 5, 16_384, found, 0.004)
    return controls


@pytest.fixture(scope="session")
def results_factory():
    return make_results


def _texts(figure):
    """Every visible text of a drawn figure with its box in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    hidden = {t for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for t in _undrawn(axes, axis)}
    boxes = [(t, t.get_window_extent(canvas.get_renderer())) for t in found if t not in hidden]
    return [(t, box) for t, box in boxes if box.width > 0]


def _undrawn(axes, axis):
    """Texts of an axis switched off, and labels of ticks beyond the limits: matplotlib keeps both."""
    if not axes.axison:
        return axis.findobj(Text)
    low, high = sorted(axis.get_view_interval())
    slack = 1e-6 * (high - low)
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [t for k in ticks if not low - slack <= k.get_loc() <= high + slack for t in k.findobj(Text)]


def _overlaps(found):
    pairs = []
    for (a, x), (b, y) in itertools.combinations(found, 2):
        wide, high = min(x.x1, y.x1) - max(x.x0, y.x0), min(x.y1, y.y1) - max(x.y0, y.y0)
        if wide > 1 and high > 4:  # a line's box is a little taller than its letters
            pairs.append((a.get_text(), b.get_text()))
    return pairs


@pytest.fixture(scope="session")
def texts():
    return _texts


@pytest.fixture(scope="session")
def overlaps():
    """Pairs among drawn texts of which one is written over the other."""
    return _overlaps
