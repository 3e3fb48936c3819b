"""The closing table is plain text of at most 100 columns with the numbers of the results."""

import math
from dataclasses import replace

import pytest

from slms.measure.rows import Row
from slms.report.closing_table import closing_table
from slms.report.tables import WIDTH, amount, cell, interval, number, share, text_table


@pytest.mark.parametrize("n_layers, role", [(0, "dense"), (1, "routed"), (4, "static"), (24, "routed")])
def test_fits_the_width_and_is_plain(results_factory, n_layers, role):
    text = closing_table(results_factory(layers=range(n_layers), role=role))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\x1b" not in text and not any(line != line.rstrip() for line in text.splitlines())


def test_shows_losses_with_intervals_in_nats_and_perplexity(results_factory):
    lines = closing_table(results_factory()).splitlines()
    dense = next(line for line in lines if line.strip().startswith("dense base"))
    routed = next(line for line in lines if line.strip().startswith("routed "))
    difference = next(line for line in lines if line.strip().startswith("difference"))
    assert "1.5170" in dense and "[1.5010, 1.5330]" in dense and f"{math.exp(1.517):.3f}"[:4] in dense
    assert "1.5300" in routed and f"[{math.exp(1.514):.3f}, {math.exp(1.547):.3f}]" in routed
    assert "+0.0130" in difference and f"×{math.exp(0.013):.4f}" in difference


def test_shows_compute_with_router_and_head(results_factory):
    text = closing_table(results_factory())
    assert "MLPs, router included        260k    190k  27.0 %" in text
    assert "whole model, head included   1.1M   1.03M   6.4 %" in text
    assert "active fraction: 62.5 % of all MLP neurons execute" in text


def test_dense_run_claims_no_saving(results_factory):
    text = closing_table(results_factory(layers=(), role="dense"))
    assert "saved" not in text and "active fraction" not in text and "purity" not in text


def test_every_place_and_metric_with_its_distance_from_the_controls(results_factory):
    results = results_factory()
    text = closing_table(results)
    tables = text.count("  place ")
    for place in results.places:
        assert text.count(f"  {place.removesuffix('.mlp')} ") == tables
        for row in results.rows:
            if row.place == place and row.metric in ("purity", "si", "si_given_token"):
                assert f"{row.value:.3f}" in text and f"{100 * row.value / row.ceiling:.0f} %" in text
                for control in results.controls.values():
                    (other,) = [r for r in control.rows if (r.place, r.metric, r.family) == row.key]
                    assert f"{other.difference:+.3f}±0.010".replace("0.", ".") in text
    assert "tokens with a label:" in text and "semantic 41.0 %" in text
    assert "− random: minus what random_router chooses" in text and "5 seeds, on 16.4k tokens" in text


def test_the_brief_table_leaves_to_the_command_what_metrics_say(results_factory):
    results = results_factory()
    more = [Row("L0.mlp", "vocabulary", "input", value=0.7), Row("L0.mlp", "si", "rare", value=-0.9)]
    results = replace(results, rows=[*results.rows, *more])
    brief, whole = closing_table(results, brief=True), closing_table(results)
    assert "SI rare" in whole and "SI rare" not in brief and brief.count("SI ") == 2 and "purity" in brief
    assert "vocab. input" in whole and "vocab." not in brief and "eval.py pathways" in brief


def test_losses_with_other_choices(results_factory):
    lines = closing_table(results_factory(nats=1.53)).splitlines()
    oracle = next(line for line in lines if "oracle" in line)
    assert oracle.split()[-4:] == ["2.0300", "+0.5000", "[+0.4800,", "+0.5200]"]
    assert "choice executed" not in closing_table(results_factory(role="static"))


def test_no_table_shows_z_or_the_sd_of_a_null(results_factory):
    """Both measure the number of tokens; the sd stays in the files."""
    for role in ("routed", "static"):
        text = closing_table(results_factory(role=role))
        assert " z " not in text and "null ± sd" not in text


def test_without_controls_of_equal_load_the_interval_and_null_are_shown(results_factory):
    text = closing_table(results_factory(role="static"))
    assert "± 95 %" in text and "null" in text and "− random" not in text


def test_places_of_several_parts_are_told_apart(results_factory):
    results = results_factory(layers=(0,))
    text = closing_table(replace(results, rows=[*results.rows, Row("L0.attn", "purity", value=0.125)]))
    assert "  L0.mlp " in text and "  L0.attn " in text and "0.125" in text


def test_what_was_not_measured_is_a_dash(results_factory):
    rows = [Row("L0.mlp", "purity", value=0.3), Row("L0.mlp", "entropy", value=4.2), Row("L0.mlp", "utilization")]
    text = closing_table(replace(results_factory(layers=(0,)), rows=rows, controls={}))
    row = next(line for line in text.splitlines() if "L0" in line)
    assert row.split() == ["L0", "0.300", "–", "4.20", "–"]


def test_stand_in_is_said(results_factory):
    assert "base stories-1m from embedded (asked for roneneldan/TinyStories-1M)" in closing_table(results_factory())


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (999.4, "999"), (999.9, "1k"), (1234, "1.23k"), (1e6, "1M"), (3.2e12, "3.2T")]
)
def test_amount(value, text):
    assert amount(value) == text


def test_cells():
    assert (number(None), number(math.nan), number(1.23456, 2)) == ("–", "–", "1.23")
    assert (share(None), share(0.125)) == ("–", "12.5 %")
    assert (interval(None, 1.0), interval(1, 2, 1)) == ("", "[1.0, 2.0]")
    assert text_table(["a"], []) == "  a\n  -"


def test_a_measured_model_is_not_said_to_be_trained_on_nothing(results_factory):
    results = results_factory()
    trained = closing_table(results).splitlines()[0]
    assert f"trained on {amount(results.run.tokens_trained)} tokens in {results.run.steps} steps, " in trained
    measured = replace(results, run=replace(results.run, tokens_trained=0, steps=0, seconds=6.2))
    assert closing_table(measured).splitlines()[0].endswith(" run, measured in 6 s")


def test_zero_has_no_sign():
    assert number(-1e-5) == "0.000"
    assert cell(Row("L1.mlp", "purity", value=-1e-5)) == "0.000"
    assert number(-0.0006) == "-0.001"
