"""Calibrating a tiny shape end to end."""

import pytest

from slms import kernels
from slms.kernels import cache, costs, dispatch


@pytest.mark.parametrize("training", [False, True])
def test_calibrate(training):
    path = kernels.calibrate(8, 12, 3, tokens=(1, 32), densities=(0.3, 1.0), seconds=0.0, training=training)
    assert path == cache.cache_file()
    ((key, rows),) = costs.load_table().items()
    assert key.endswith(f'[8, 12, 3, false, "float32", "cpu", {str(training).lower()}]')
    assert [(row["tokens"], row["density"]) for row in rows] == [(1, 0.3), (1, 1.0), (32, 0.3), (32, 1.0)]
    assert all(set(row["us"]) == {"dense", "grouped", "rows"} for row in rows)
    assert all(us > 0 for row in rows for us in row["us"].values())
    assert "calibrated at 1 tokens, density 0.3" in kernels.explain(1, 8, (0, 4, 8, 12), 0.25, training=training)
    dispatch.forget_choices()
