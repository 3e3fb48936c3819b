"""Pathways by word class as rows, a table and a figure; none where every token executes equally many."""

import pytest
import torch

from slms.measure.evidence import Choices
from slms.measure.pathways import word_class_rows
from slms.measure.rows import row_of
from slms.metrics.units import CountLayout, Family, UnitCounts
from slms.report.word_classes import word_class_figure, word_class_table

NAMES = {"pos": ("noun", "verb", "absent")}


def choices(number: torch.Tensor, classes: torch.Tensor) -> Choices:
    """Of four pathways, every token chooses its first `number` [n]."""
    counts = UnitCounts(CountLayout({"token": Family(2), "pos": Family(3)}), 4, together=True)
    ids, chosen = torch.zeros(len(number), dtype=torch.long), torch.arange(4) < number[:, None]
    counts.update(chosen, counts.layout.cells(ids, {"token": ids, "pos": classes}, torch.arange(len(number))))
    return Choices("L2.mlp", counts, (0, 1, 2, 3, 4))


def test_means_by_hand_in_rows_table_and_figure():
    classes = torch.tensor([0, 0, 1, 1, 1, -1])
    rows = word_class_rows(choices(torch.tensor([1, 2, 4, 3, 4, 1]), classes), NAMES)
    assert [(row.family, row.value, row.n) for row in rows] == [("noun", 1.5, 2), ("verb", pytest.approx(11 / 3), 3)]
    rows += [row_of("L2.mlp", "chosen_per_token", "", 2.5), row_of("model", "perplexity", "", 9.0)]
    head, _, line, *_ = word_class_table(rows).splitlines()
    assert head.split() == ["pathways", "verb", "noun"] and line.split() == ["L2", "3.67", "1.50"]
    (axes, _) = word_class_figure(rows, "words").axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["verb", "noun"]
    assert axes.images[0].get_array().tolist()[0] == pytest.approx(
        [torch.tensor(11 / 7.5).log2().item(), -0.737], abs=0.01
    )


def test_equal_numbers_have_no_rows():
    same = choices(torch.full((4,), 2), torch.tensor([0, 0, 1, 1]))
    assert word_class_rows(same, NAMES) == [] == word_class_rows(same, {"semantic": ("x", "y", "z")})
    assert word_class_table([]) == ""
    with pytest.raises(ValueError, match="equally many"):
        word_class_figure([], "words")
