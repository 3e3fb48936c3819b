"""Scores as plain numbers: what could not be measured is None, never NaN."""

import dataclasses
import math

import torch

from slms.metrics.functional import Score
from slms.metrics.units import CountLayout, Family, UnitCounts
from slms.plain import to_plain
from slms.report.describe import describe_layer, estimate, finite


def test_estimate_drops_what_is_not_finite():
    nothing = torch.full((2,), torch.nan)
    score = Score(
        value=0.5, low=math.nan, high=math.nan, null_mean=0.1, null_sd=0.0, z=math.inf, ceiling=0.9, n=12,
        units=nothing, units_z=nothing,
    )  # fmt: skip
    found = estimate(score)
    assert (found.value, found.low, found.high, found.z, found.ceiling, found.n) == (0.5, None, None, None, 0.9, 12)
    assert finite(torch.tensor(2.0)) == 2.0


def test_a_pathway_that_nobody_chose_is_described_all_the_same():
    """Static choices: the first of three pathways, always."""
    metric = UnitCounts(CountLayout({"token": Family(5), "pos": Family(2)}), 3, together=True)
    ids = torch.arange(200) % 5
    chosen = torch.zeros(200, 3, dtype=torch.bool)
    chosen[:, 0] = True
    metric.update(chosen, metric.layout.cells(ids, {"token": ids, "pos": ids % 2}, torch.arange(200) // 20))
    names = {"pos": ("even", "odd")}
    layer = describe_layer(2, metric, (0, 4, 7, 10), list("abcde"), names)
    assert layer.density == 0.4 and layer.chosen_per_token == 1.0 and layer.max_violation == 2.0
    assert [pathway.tokens for pathway in layer.pathways] == [200, 0, 0]
    silent = layer.pathways[1]
    assert (silent.load, silent.purity, silent.top_tokens, silent.profile) == (0.0, None, [], {})
    assert layer.pathways[0].top_tokens == []  # it serves everything: no token tells it from the rest
    assert abs(layer.purity.value) < 1e-6 and layer.si["pos"].value is not None

    def numbers(value):
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from numbers(item)
        elif isinstance(value, float):
            yield value

    raw = dataclasses.asdict(layer)
    assert to_plain(layer) == raw and all(math.isfinite(number) for number in numbers(raw))
