"""The evolution figure draws what metrics.csv holds and leaves out what it does not."""

import pytest

from slms.report.evolution import evolution_figure
from slms.report.metrics_csv import Logged


def _rows(n_layers, metrics=("purity", "entropy", "utilization", "stability", "saturation"), steps=5):
    rows = [Logged(i, 0, "train", "loss", "lm", 3.0 - i) for i in range(steps)]
    rows += [Logged(i, 0, "val", "loss", "", 3.1 - i) for i in range(steps)]
    rows += [Logged(i, 0, "val", f"si_{name}", "", 0.1 * i) for i in range(steps) for name in ("pos", "semantic")]
    return rows + [
        Logged(i, 0, "val", metric, f"L{layer}.mlp", 0.1 * layer + i)
        for i in range(steps)
        for metric in metrics
        for layer in range(n_layers)
    ]


@pytest.mark.parametrize("n_layers", [1, 4, 24])
def test_every_series_is_a_line_with_its_points(n_layers):
    figure = evolution_figure(_rows(n_layers))
    purity = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Purity")
    lines = {line.get_label(): list(line.get_ydata()) for line in purity.get_lines()}
    assert lines == {f"L{layer}": [0.1 * layer + i for i in range(5)] for layer in range(n_layers)}
    assert len(figure.axes) == 7


def test_the_last_of_two_values_of_a_step_is_drawn():
    rows = [*_rows(1), Logged(2, 0, "val", "purity", "L0.mlp", 9.0)]
    purity = next(axes for axes in evolution_figure(rows).axes if axes.get_title(loc="left") == "Purity")
    assert list(purity.get_lines()[0].get_ydata()) == [0.0, 1.0, 9.0, 3.0, 4.0]


def test_neurons_that_move_have_a_panel():
    rows = [*_rows(1), *(Logged(i, 0, "assignment", "moved", "L0.mlp", 0.5 - 0.1 * i) for i in range(3))]
    moved = evolution_figure(rows).axes[-1]
    assert (moved.get_title(loc="left"), moved.get_ylabel()) == ("Neurons that changed pathway", "share of all")
    assert list(moved.get_lines()[0].get_ydata()) == [0.5, 0.4, 0.3]


@pytest.mark.parametrize(("density", "drawn"), [([0.5, 0.5, 0.5], False), ([0.5, 0.52, 0.51], True)])
def test_density_has_a_panel_where_it_varies(density, drawn):
    rows = [*_rows(1), *(Logged(i, 0, "val", "density", "L0.mlp", value) for i, value in enumerate(density))]
    rows += [Logged(i, 0, "val", "density", "L1.mlp", 0.5) for i in range(3)]
    panels = {axes.get_title(loc="left"): axes for axes in evolution_figure(rows).axes}
    assert ("Density" in panels) == drawn
    if drawn:
        assert panels["Density"].get_ylabel() == "share of units executed"
        assert [list(line.get_ydata()) for line in panels["Density"].get_lines()] == [density, [0.5] * 3]


def test_dense_runs_have_the_loss_only():
    figure = evolution_figure(_rows(0)[:10])
    assert [(axes.get_title(loc="left"), axes.get_ylabel()) for axes in figure.axes] == [("Loss", "nats per token")]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match=r"metrics.csv holds no loss"):
        evolution_figure([Logged(0, 0, "val", "x", "", 1.0)])
