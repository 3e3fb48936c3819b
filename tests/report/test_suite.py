"""The suite's rule on made-up points, what is kept of a model, and the figure."""

import math

import pytest

from slms.models.base import BaseConfig, init_base
from slms.report.suite import (
    METRICS,
    Point,
    Value,
    judge,
    parameters,
    read_point,
    suite_figure,
    suite_table,
    write_point,
)


def point(i: int, slope: float, random_slope: float, q: float = 0.1) -> Point:
    wobble = 0.001 * (-1) ** i
    si = Value(0.1 + slope * i + wobble, 0.09, 0.11, 0.01, 0.05 + random_slope * i - wobble)
    return Point(f"m{i}", 10 ** (5 + i), 2 * 10 ** (5 + i), 8, 2, 2.0, 1000, {m: si for m in METRICS} | {
        "Q": Value(q - slope * i, 0.0, 0.2, 0.03, 0.0)})  # fmt: skip


def test_verdicts_need_the_trained_and_the_difference():
    rising = {v.metric: v.verdict for v in judge([point(i, 0.05, 0.0) for i in range(4)])}
    assert rising == {"AS": "rises", "SI pos": "rises", "SI semantic": "rises", "Q": "falls"}
    # random weights rise as fast: architecture, not training
    alike = {v.metric: v for v in judge([point(i, 0.05, 0.05) for i in range(4)])}
    assert alike["SI pos"].verdict == "no trend" and alike["SI pos"].low > 0
    assert {v.verdict for v in judge([point(i, 0.0, 0.0) for i in range(4)])} == {"no trend"}
    assert {v.verdict for v in judge([point(0, 0, 0), point(1, 1, 0)])} == {"too few models"}
    (first, *_) = judge([point(i, 0.05, 0.0) for i in range(4)])
    assert first.slope == pytest.approx(0.05, abs=0.002)  # per decade


def test_seeds_of_a_size_are_one_point():
    once = [point(i, 0.05, 0.0) for i in range(4)]
    apart = [once[0], *(p._replace(values={m: Value(*(x + d for x in v)) for m, v in p.values.items()})
                        for p in once[1:] for d in (-0.02, 0.02))]  # fmt: skip
    for one, several in zip(judge(once), judge(apart), strict=True):
        assert several[1:4] == pytest.approx(one[1:4]) and several.verdict == one.verdict
    assert {v.verdict for v in judge([point(0, 0, 0), point(1, 1, 0), point(1, 1, 0)])} == {"too few models"}


def test_parameters_without_embeddings():
    model = init_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=2, n_heads=2, vocab=50))
    without, total = parameters(model)
    assert total - without == 50 * 8 + 2048 * 8  # tied: the head is the embedding
    assert without == sum(p.numel() for name, p in model.named_parameters() if ".h." in name or "ln_f" in name)


def test_a_kept_point_is_read_under_its_own_settings_only(tmp_path):
    kept = point(1, 0.1, 0.0)
    kept.values["Q"] = Value(math.nan, math.nan, math.nan, math.nan, 0.1)
    path = tmp_path / "m.json"
    settings = {"model": "m", "n_tokens": 64, "weights": [1]}
    assert read_point(path, settings) is None
    write_point(path, kept, settings)
    again = read_point(path, settings)
    assert again[:7] == kept[:7] and again.values["AS"] == kept.values["AS"] and math.isnan(again.values["Q"].value)
    assert read_point(path, settings | {"n_tokens": 65}) is None
    path.write_text(path.read_text()[:40])
    assert read_point(path, settings) is None


def test_table_and_figure():
    points = [point(i, 0.05, 0.0) for i in range(4)]
    table = suite_table(points, judge(points))
    assert "rises" in table and "falls" in table and max(map(len, table.splitlines())) <= 110
    figure = suite_figure("stories", points, judge(points))
    assert len(figure.axes) == 4 and any("rises" in text.get_text() for text in figure.axes[0].texts)
    assert "a slope needs models of at least 3 sizes" in suite_table(points[:2], judge(points[:2]))
    suite_figure("two", points[:2], judge(points[:2]))
