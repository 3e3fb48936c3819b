"""The frontier figure names every rule in the legend and draws marks at their numbers, with and without timing."""

import math

import pytest

from slms.measure.frontier import Cost, Frontier, Point, point_rows
from slms.metrics.functional import Interval
from slms.report.frontier_figure import FLOOR, frontier_figure


def point(rule, density, ratio, timed, subject="dense"):
    speeds = {way: {"mlp_speedup": 2.0, "model_speedup": x} for way, x in (("decode", 1.5), ("prefill", 1.2))}
    loss, difference = Interval(1.0, 0.9, 1.1, 9), Interval(*[math.log(ratio)] * 3, 9)
    cost, dense = Cost(density, density, 1 + density, 1.0, 2.0), Cost(1.0, 1.0, 2.0, 1.0, 2.0)
    rows = point_rows(loss, difference, cost, dense, speeds if timed else {}, {})
    return Point(subject, rule, density, rows)


@pytest.mark.parametrize("timed", [True, False])
def test_figure(timed):
    names = ["oracle", "cett", "teal", "wina", "cats", "low_rank", "griffin", "static", "router"]
    points = [point(name, rho, ratio, timed) for name in names for rho, ratio in ((0.5, 1.1), (0.25, 9.0))]
    points.append(point("top_k", 0.6, 0.99, timed, "routed"))
    found = Frontier(point("", 1.0, 1.0, False), points, "a chip")
    figure = frontier_figure(found, "a model")
    assert len(figure.axes) == (3 if timed else 1)
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert {*names, "routed: top_k"} <= set(lines)
    assert lines["oracle"].get_xdata().tolist() == [0.25, 0.5]
    assert lines["oracle"].get_ydata().tolist() == pytest.approx([8.0, 0.1])
    looks = {(line.get_color(), line.get_marker()) for name, line in lines.items() if name in names}
    assert len(looks) == len(names)
    filled = {name for name, line in lines.items() if line.get_marker() != "None" and line.get_mfc() != "white"}
    assert filled == {"routed: top_k"}  # what was trained
    assert lines["routed: top_k"].get_ydata().tolist() == [FLOOR]  # below the dense model's: on the lowest line
    if timed:
        for panel, speedup in zip(figure.axes[1:], (1.5, 1.2), strict=True):
            assert panel.get_lines()[0].get_xdata().tolist() == [speedup, speedup]
