"""One function and one entry in the table of metrics put a number into rows, logs, tables and figures."""

import pytest
import torch

from slms.measure.evidence import Choices
from slms.measure.metrics import METRICS, Metric, rows_of
from slms.measure.rows import log_keys
from slms.metrics.units import CountLayout, Family, UnitCounts
from slms.report.evolution import evolution_figure
from slms.report.metrics_csv import Logged
from slms.report.place_tables import place_tables


@pytest.fixture
def choices():
    """Static choices: the first of three pathways, always."""
    counts = UnitCounts(CountLayout({"token": Family(5), "pos": Family(2)}), 3, together=True)
    ids, chosen = torch.arange(200) % 5, torch.zeros(200, 3, dtype=torch.bool)
    chosen[:, 0] = True
    counts.update(chosen, counts.layout.cells(ids, {"token": ids, "pos": ids % 2}, torch.arange(200) // 20))
    return Choices("L2.mlp", counts, (0, 4, 7, 10))


def test_numbers_of_static_choices_by_hand(choices):
    rows = {row.key[1:]: row for row in rows_of(choices)}
    wanted = {"density": 0.4, "chosen_per_token": 1.0, "max_load": 3.0, "utilization": 1 / 3}
    for metric, value in wanted.items():
        assert (rows[metric, ""].value, rows[metric, ""].n) == (pytest.approx(value), 200)
    assert rows["purity", ""].value == pytest.approx(0, abs=1e-6)
    assert rows["entropy", ""].value == pytest.approx(torch.tensor(5.0).log().item(), abs=0.02)
    assert rows["si", "pos"].value is not None and ("si_given_token", "pos") not in rows
    assert {row.place for row in rows.values()} == {"L2.mlp"}


def test_every_entry_says_what_it_means_and_what_it_needs():
    for name, metric in METRICS.items():
        assert metric.meaning and (metric.of is None) == (metric.measure is None), name
        assert metric.style.format(0.5), name


def test_a_new_metric_shows_everywhere(choices, monkeypatch):
    """What docs/extending.md promises: no other file needs to change."""

    def idle(e: Choices) -> float:
        return float((e.counts.uses == 0).double().mean())

    entry = Metric(Choices, idle, "share of pathways never chosen", "idle", "{:.1f}", title="Idle pathways")
    monkeypatch.setitem(METRICS, "idle", entry)
    rows = rows_of(choices)
    assert log_keys(rows, "val")["val/idle/L2.mlp"] == pytest.approx(2 / 3)
    lines = "\n".join(table.text for table in place_tables(rows)).splitlines()
    assert "idle" in lines[0].split() and "0.7" in lines[2].split()
    logged = [Logged(step, 0, "val", "idle", "L2.mlp", 0.5) for step in range(2)]
    assert [axes.get_title(loc="left") for axes in evolution_figure(logged).axes] == ["Idle pathways"]
