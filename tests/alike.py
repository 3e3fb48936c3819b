"""Whether two measurements of one model give the same rows."""

import pytest

from slms.measure.rows import NUMBERS, Row

OF_OUTPUTS = ("oracle_overlap", "choice_nats")
"""Metrics of what the MLPs compute, which rounding moves; all others follow from counts."""


def assert_alike(first: list[Row], second: list[Row]) -> None:
    """Require equal rows; of `OF_OUTPUTS`, numbers equal to 1e-4."""
    assert [row.key for row in first] == [row.key for row in second]
    for one, other in zip(first, second, strict=True):
        if one.metric in OF_OUTPUTS:
            for name in NUMBERS:
                wanted, found = getattr(one, name), getattr(other, name)
                near = wanted if wanted is None else pytest.approx(wanted, rel=1e-4, abs=1e-4)
                assert found == near, (one, name)
        else:
            assert one == other
