"""The suite's table and figure show the numbers and the verdicts."""

from slms.measure.rows import MEAN, Row
from slms.measure.suite import NUMBERS, SuiteModel, verdicts
from slms.report.suite import SUITE_COLUMNS, suite_figure, suite_rows, suite_table


def model(i: int) -> SuiteModel:
    """One of a suite whose numbers rise with size, but Q, which falls."""
    value = 0.1 + 0.05 * i + 0.001 * (-1) ** i
    rows = dict.fromkeys(NUMBERS, Row(MEAN, "si", "pos", value, 0.05, 0.4, control=0.05))
    rows["Q"] = Row(MEAN, "q", value=0.3 - value, low=-0.2, high=0.3, control=0.0)
    return SuiteModel(f"m{i}", 10 ** (5 + i), 2 * 10 ** (5 + i), 8, 2, 2.0, 1000, rows)


def test_table_and_figure():
    models = [model(i) for i in range(4)]
    table = suite_table(models, verdicts(models))
    assert "rises" in table and "falls" in table and max(map(len, table.splitlines())) <= 110
    figure = suite_figure("stories", models, verdicts(models))
    assert len(figure.axes) == 4 and any("rises" in text.get_text() for text in figure.axes[0].texts)
    assert "a slope needs models of at least 3 sizes" in suite_table(models[:2], verdicts(models[:2]))
    suite_figure("two", models[:2], verdicts(models[:2]))
    rows = list(suite_rows(models))
    assert len(rows) == 16 and all(len(row) == len(SUITE_COLUMNS) for row in rows)


def test_what_was_not_measured_is_drawn_as_nothing():
    models = [model(i)._replace(rows=model(i).rows | {"Q": Row(MEAN, "q")}) for i in range(4)]
    assert "–" in suite_table(models, verdicts(models))
    suite_figure("stories", models, verdicts(models))
