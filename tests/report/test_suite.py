"""The suite's table and figure show the numbers and the verdicts."""

from slms.measure.rows import MEAN, Row
from slms.measure.suite import NUMBERS, SuiteModel, verdicts
from slms.report.suite import SUITE_COLUMNS, suite_figure, suite_rows, suite_table


def model(i: int, run: int = 0, step: int = 0) -> SuiteModel:
    """One of a suite whose numbers rise with size."""
    value = 0.1 + 0.05 * i + 0.001 * (-1) ** (i + run)
    rows = dict.fromkeys(NUMBERS, Row(MEAN, "si", "pos", value, 0.05, 0.4, control=0.05))
    n = 10 ** (5 + i)
    return SuiteModel(f"m{i}", f"m{i}-{run}", n, 2 * n, 8, 2, 3.0 - 0.2 * i - 0.5 * step, 1000, rows)


def test_table_and_figure():
    models, aside = [model(i) for i in range(4)], [model(1)._replace(model="guest")]
    table = suite_table(models, aside, verdicts(models))
    assert "rises" in table and "guest" in table and max(map(len, table.splitlines())) <= 120
    figure = suite_figure("stories", models, aside, verdicts(models))
    assert len(figure.axes) == 3 and "rises" in figure.axes[0].get_title("left")
    assert "guest, not in the slope" in figure._supxlabel.get_text()
    assert "a slope needs models of at least 3 sizes" in suite_table(models[:2], [], verdicts(models[:2]))
    suite_figure("two", models[:2], [], verdicts(models[:2]))
    rows = list(suite_rows(models))
    assert len(rows) == 16 and all(len(row) == len(SUITE_COLUMNS) for row in rows)


def test_checkpoints_are_drawn_over_loss_too():
    models = [model(i, run, step) for i in range(3) for run in range(2) for step in range(3)]
    table = suite_table(models, [], verdicts(models))
    assert "2 of width 8" in table and "at equal loss" in table and "at one loss (" in table
    figure = suite_figure("stories", models, [], verdicts(models))
    assert len(figure.axes) == 6 and len(figure.axes[0].lines) == 7  # a line a run, and one for models beside


def test_what_was_not_measured_is_drawn_as_nothing():
    models = [model(i)._replace(rows=model(i).rows | {"AS": Row(MEAN, "sparsity", "gini")}) for i in range(4)]
    assert "–" in suite_table(models, [], verdicts(models))
    suite_figure("stories", models, [], verdicts(models))
