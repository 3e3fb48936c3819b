"""The table of many pathways is printed for every selector of a tiny MLP, and bad sizes are refused."""

import pytest

from benchmarks import pathways

TINY = ["--d", "24", "--d_ff", "48", "--prompt", "3", "--seconds", "0"]


def test_prints_a_row_for_each_selector_and_number(capsys):
    pathways.main([*TINY, "--pathways", "3", "48", "--rank", "4", "--calibration", "256"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert names == pathways.COLUMNS
    assert [row[:3] for row in rows] == [[p, k, r] for r in pathways.ROUTERS for p, k in (("3", "2"), ("48", "24"))]
    for row in rows:
        assert (row[3] == row[4] == "") == (row[2] == "gate"), "it has no router"
        *positive, seconds, peak = (float(cell.rstrip("%")) for cell in row[3:] if cell)
        assert min(positive) > 0 and seconds >= 0 and peak >= 0


@pytest.mark.parametrize("wrong", [["--pathways", "49"], ["--density", "0"]])
def test_refuses_what_cannot_be(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        pathways.main([*TINY, *wrong])
    assert stop.value.code == 2 and wrong[0] in capsys.readouterr().err
