"""The comparison of attentions runs on a tiny one, forward and backward, and counts the heads."""

import pytest

from benchmarks import heads


@pytest.mark.parametrize("more", [[], ["--backward"]])
def test_prints_a_row_for_each_number_of_heads(capsys, more):
    shape = ["--d", "24", "--heads", "4", "--groups", "2", "--tokens", "8", "--calls", "3"]
    heads.main([*shape, "--k", "1", "2", *more])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["50% of heads", "100% of heads"]
    assert all("x [" in line for line in lines)
