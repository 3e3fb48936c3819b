"""Realistic made-up results: what the report tests read, draw and corrupt."""

import random

import pytest

from slms.measure.schema import (
    Base,
    Compute,
    Data,
    Estimate,
    Labels,
    Layer,
    Loss,
    LossDifference,
    Losses,
    Pathway,
    Results,
    Run,
    Token,
)  # fmt: skip
from slms.report.results import legacy_block

WORDS = ' the| a|.|,| and| was| little| girl| said|\n| dog| happy| ran| park| Once| upon| to| her|"| Tom|ing'.split("|")
WORDS += [" wonderful", " butterflies", " internationalisation"]
POS = "noun verb adjective adverb pronoun determiner preposition conjunction punctuation"
CLASSES = {
    "pos": POS.split(),
    "semantic": ["animal", "person", "place", "food", "toy", "feeling", "motion", "speech"],
    "frequency": ["rare", "common", "frequent"],
}


def estimate(rng, value, sd=0.004, chance=0.003):
    return Estimate(
        value=value, low=value - 4 * sd, high=value + 4 * sd, n=200_000, null_mean=chance, null_sd=sd, z=value / sd,
        ceiling=0.9, random_model=rng.gauss(0.01, sd),
    )  # fmt: skip


def make_layer(rng, layer, n_pathways, k):
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
    si = {
        family: estimate(rng, 0.05 * i + 0.1 + rng.uniform(0, 0.1), 0.003) for i, family in enumerate(CLASSES, start=1)
    }
    return Layer(
        layer=layer, n_pathways=n_pathways, chosen_per_token=float(k), density=k / n_pathways,
        purity=estimate(rng, 0.25 + rng.uniform(-0.05, 0.1)), purity_legacy=estimate(rng, 0.41, chance=0.3),
        entropy=estimate(rng, 4.2, chance=5.9), utilization=Estimate(1.0, n=200_000), effective_pathways=0.93,
        max_violation=n_pathways * max(loads) / total - 1, si=si,
        si_given_token={"pos": estimate(rng, 0.02)}, pathways=pathways,
    )  # fmt: skip


def make_results(layers=(0, 2, 4, 6), n_pathways=16, k=4, role="routed", name="routed_tinystories", seed=0, nats=1.53):
    rng = random.Random(seed)
    drawn = [make_layer(rng, layer, n_pathways, k) for layer in layers]
    share = {family: {name: 1 / len(names) for name in names} for family, names in CLASSES.items()}
    return Results(
        run=Run(name, role, "python train.py --config routed_tinystories.yaml", "sha256:ab", 0, "2025-01-01T00:00:00Z",
                412.3, 1200, 4_915_200, {"python": "3.11.9", "slms": "0.1.0"}, {"device": "cpu", "cores": "2"}),
        base=Base("stories-1m", "embedded", "roneneldan/TinyStories-1M"),
        data=Data("stories", "embedded", 10_000_000, 200_000, 900),
        losses=Losses(
            model=Loss(nats, nats - 0.016, nats + 0.017, 2.718281828**nats, 900, 200_000),
            dense=Loss(1.517, 1.501, 1.533, 4.5585, 900, 200_000),
            difference=LossDifference(nats - 1.517, nats - 1.519, nats - 1.514, 900),
        ),
        compute=Compute(0.625, 2.6e5, 1.9e5, 1.1e6, 1.03e6, 0.27, 0.064),
        routing={"n_pathways": n_pathways, "k": k, "layers": None, "gate": "unit"} if drawn else None,
        layers=drawn,
        labels={"pos": Labels(0.97, share["pos"]), "semantic": Labels(0.41, share["semantic"]),
                "frequency": Labels(1.0, share["frequency"])} if drawn else {},
        legacy=legacy_block(drawn),
    )  # fmt: skip


@pytest.fixture(scope="session")
def results_factory():
    return make_results
