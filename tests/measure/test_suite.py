"""The rule of the suite gives the right verdicts on made-up models, and one model is measured as it says."""

from dataclasses import replace

import pytest

from slms.measure.rows import MEAN, Row
from slms.measure.suite import NUMBERS, SuiteModel, parameters, verdicts
from slms.models.base import BaseConfig, init_base


def model(i: int, slope: float, random_slope: float, q: float = 0.1) -> SuiteModel:
    wobble = 0.001 * (-1) ** i
    si = Row(MEAN, "si", "pos", 0.1 + slope * i + wobble, control=0.05 + random_slope * i - wobble)
    rows = dict.fromkeys(NUMBERS, si) | {"Q": Row(MEAN, "q", value=q - slope * i, control=0.0)}
    return SuiteModel(f"m{i}", 10 ** (5 + i), 2 * 10 ** (5 + i), 8, 2, 2.0, 1000, rows)


def test_verdicts_need_the_trained_and_the_difference():
    rising = {v.metric: v.verdict for v in verdicts([model(i, 0.05, 0.0) for i in range(4)])}
    assert rising == {"AS": "rises", "SI pos": "rises", "SI semantic": "rises", "Q": "falls"}
    # random weights rise as fast: architecture, not training
    alike = {v.metric: v for v in verdicts([model(i, 0.05, 0.05) for i in range(4)])}
    assert alike["SI pos"].verdict == "no trend" and alike["SI pos"].low > 0
    assert {v.verdict for v in verdicts([model(i, 0.0, 0.0) for i in range(4)])} == {"no trend"}
    assert {v.verdict for v in verdicts([model(0, 0, 0), model(1, 1, 0)])} == {"too few models"}
    (first, *_) = verdicts([model(i, 0.05, 0.0) for i in range(4)])
    assert first.slope == pytest.approx(0.05, abs=0.002)  # per decade


def test_seeds_of_a_size_are_one_model():
    once = [model(i, 0.05, 0.0) for i in range(4)]
    moved = [
        {name: replace(row, value=row.value + d, control=row.control + d) for name, row in m.rows.items()}
        for m in once[1:]
        for d in (-0.02, 0.02)
    ]
    apart = [
        once[0],
        *(m._replace(rows=rows) for m, rows in zip([m for m in once[1:] for _ in "ab"], moved, strict=True)),
    ]
    for one, several in zip(verdicts(once), verdicts(apart), strict=True):
        assert several[1:4] == pytest.approx(one[1:4]) and several.verdict == one.verdict
    assert {v.verdict for v in verdicts([model(0, 0, 0), model(1, 1, 0), model(1, 1, 0)])} == {"too few models"}


def test_parameters_without_embeddings():
    model = init_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=2, n_heads=2, vocab=50))
    without, total = parameters(model)
    assert total - without == 50 * 8 + 2048 * 8  # tied: the head is the embedding
    assert without == sum(p.numel() for name, p in model.named_parameters() if ".h." in name or "ln_f" in name)
