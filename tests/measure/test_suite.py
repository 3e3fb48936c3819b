"""The rule of the suite gives the right verdicts on made-up models, and one model is measured as it says."""

from dataclasses import replace
from math import log10

import pytest

from slms.measure.rows import MEAN, Row
from slms.measure.suite import (
    AS_THEY_ARE,
    AT_EQUAL_LOSS,
    AT_ONE_LOSS,
    JUDGED,
    NUMBERS,
    SuiteModel,
    one_loss,
    parameters,
    trend_of,
    verdicts,
)
from slms.models.base import BaseConfig, init_base


def model(i: int, slope: float, random_slope: float) -> SuiteModel:
    wobble = 0.001 * (-1) ** i
    si = Row(MEAN, "si", "pos", 0.1 + slope * i + wobble, control=0.05 + random_slope * i - wobble)
    return SuiteModel(f"m{i}", f"m{i}", 10 ** (5 + i), 2 * 10 ** (5 + i), 8, 2, 2.0, 1000, dict.fromkeys(NUMBERS, si))


def test_verdicts_need_the_trained_and_the_difference():
    rising = {v.metric: v.verdict for v in verdicts([model(i, 0.05, 0.0) for i in range(4)])}
    assert rising == dict.fromkeys(JUDGED, "rises")  # Q is not judged
    assert {v.verdict for v in verdicts([model(i, -0.05, 0.0) for i in range(4)])} == {"falls"}
    # random weights rise as fast: architecture, not training
    alike = {v.metric: v for v in verdicts([model(i, 0.05, 0.05) for i in range(4)])}
    assert alike["SI pos"].verdict == "no trend" and alike["SI pos"].low > 0
    assert {v.verdict for v in verdicts([model(i, 0.0, 0.0) for i in range(4)])} == {"no trend"}
    assert {v.verdict for v in verdicts([model(0, 0, 0), model(1, 1, 0)])} == {"too few sizes"}
    (first, *_) = verdicts([model(i, 0.05, 0.0) for i in range(4)])
    assert first.slope == pytest.approx(0.05, abs=0.002) and first.way == AS_THEY_ARE  # per decade
    assert first.detectable > first.high - first.slope


def test_seeds_of_a_size_are_one_model():
    once = [model(i, 0.05, 0.0) for i in range(4)]
    moved = [
        {name: replace(row, value=row.value + d, control=row.control + d) for name, row in m.rows.items()}
        for m in once[1:]
        for d in (-0.02, 0.02)
    ]
    twice = [m._replace(model=f"{m.model} {seed}", run=f"{m.model} {seed}") for m in once[1:] for seed in "ab"]
    apart = [once[0], *(m._replace(rows=rows) for m, rows in zip(twice, moved, strict=True))]
    for one, several in zip(verdicts(once), verdicts(apart), strict=True):
        assert several[2:6] == pytest.approx(one[2:6]) and several.verdict == one.verdict
    assert {v.verdict for v in verdicts([model(0, 0, 0), model(1, 1, 0), twice[0]])} == {"too few sizes"}


def checkpoints(per_decade: float, per_nat: float) -> list[SuiteModel]:
    """Four sizes × two runs × three checkpoints; the number follows the parameters, the loss, and a little noise."""
    found = []
    for size in range(4):
        for seed in range(2):
            for step in range(3):
                n, nats = int(10 ** (5 + size / 2)), 3.0 - 0.4 * size - 0.5 * step
                value = 0.1 + per_decade * log10(n) + per_nat * nats + 0.0005 * (-1) ** (size + seed + step)
                rows = dict.fromkeys(NUMBERS, Row(MEAN, "si", "pos", value, control=0.05))
                found.append(SuiteModel(f"{size}{seed}{step}", f"{size}{seed}", n, 2 * n, 8, 2, nats, 1000, rows))
    return found


def test_checkpoints_tell_size_and_loss_apart():
    by_loss = {(v.metric, v.way): v for v in verdicts(checkpoints(0.0, -0.1))}
    assert {v.verdict for v in by_loss.values()} == {"no trend"}
    last = [m for m in checkpoints(0.0, -0.1) if m.model.endswith("2")]
    assert trend_of(last, "AS", AS_THEY_ARE).verdict == "rises"  # as it looked without checkpoints
    by_size = {(v.metric, v.way): v for v in verdicts(checkpoints(0.05, -0.1))}
    for way in (AT_EQUAL_LOSS, AT_ONE_LOSS):
        assert by_size["AS", way].slope == pytest.approx(0.05, abs=0.003)
        assert by_size["AS", way].verdict == "rises"


def test_one_loss_is_that_which_most_runs_pass():
    models = checkpoints(0.0, 0.0)  # ranges 2 … 3, 1.6 … 2.6, 1.2 … 2.2, .8 … 1.8
    assert 1.6 < one_loss(models) < 2.2
    beside = [m._replace(nats=m.nats + 9) if m.run[0] == "0" else m for m in models]
    assert 1.6 < one_loss(beside) < 1.8  # which the three others pass
    assert trend_of(beside, "AS", AT_ONE_LOSS).n == 3


def test_parameters_without_embeddings():
    model = init_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=2, n_heads=2, vocab=50))
    without, total = parameters(model)
    assert total - without == 50 * 8 + 2048 * 8  # tied: the head is the embedding
    assert without == sum(p.numel() for name, p in model.named_parameters() if ".h." in name or "ln_f" in name)
