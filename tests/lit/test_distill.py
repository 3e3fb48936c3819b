"""A distillation that cannot be is refused by its option."""

import pytest

from slms.lit.distill import DistillConfig


@pytest.mark.parametrize("anneal", [0.0, -1.0, 1.5])
def test_anneal_out_of_range_is_refused(anneal):
    with pytest.raises(ValueError, match=r"model.distill.anneal is .*; it must lie in \(0, 1\]"):
        DistillConfig(anneal=anneal)
