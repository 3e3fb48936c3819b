"""The frontier's table, break-even densities and closing line, on points whose answer is known."""

import math

import pytest

from slms.measure.frontier import (
    AS_RUN,
    BESIDE,
    Cost,
    Frontier,
    Point,
    best_point,
    break_even,
    break_evens,
    point_rows,
    unbeaten,
)
from slms.measure.gguf import Timed
from slms.measure.llama_cpp import Times
from slms.measure.rows import Row
from slms.metrics.functional import Interval
from slms.report.dynamick import (
    POINT_COLUMNS,
    closing_line,
    frontier_json,
    frontier_table,
    llama_cpp_json,
    llama_cpp_lines,
)


def point(rule, density, ratio, model=None, mlp=None, subject="dense", flops=1.0):
    speed = {"tokens_per_second": 100 * (model or 0), "dense_tokens_per_second": 100.0}
    speed |= {"mlp_speedup": mlp or model, "model_speedup": model}
    mlps = 50 * flops * (density or 1.0)
    rows = point_rows(
        Interval(1.0, 0.9, 1.1, 1000),
        Interval(*map(math.log, (ratio, ratio - 0.001, ratio + 0.001)), 1000),
        Cost(density or 1.0, mlps, 50 + mlps, 50.0, 100.0),
        Cost(1.0, 50.0, 100.0, 50.0, 100.0),
        {} if model is None else {"decode": speed, "prefill": speed},
        {"L0.mlp": density or 1.0},
    )
    return Point(subject, rule, density, rows)


def frontier(*points):
    return Frontier(point("", 1.0, 1.0), list(points), "a chip, 1 thread")


def test_the_best_is_the_fastest_of_the_free():
    found = frontier(
        point("griffin", 0.5, 1.009, model=1.4, mlp=1.9),
        point("static", 0.35, 1.02, model=1.8),
        point("oracle", 0.35, 1.001, model=0.9),
        point("teal", 1.0, 1.0, model=1.5),
    )
    best = best_point(found)
    assert best.rule == "griffin"
    assert closing_line(found) == (
        "at ≤ 1 % perplexity the best is griffin at density 0.50: MLP 1.9×, model 1.4× in decode (prefill 1.9×, 1.4×) "
        "on a chip, 1 thread"
    )


def test_the_unbeaten_are_the_points_that_no_other_dominates():
    found = frontier(
        point("a", 0.5, 1.2, model=1.4),
        point("slow and bad", 0.5, 1.3, model=1.3),
        point("b", None, 1.05, model=1.2, subject=BESIDE),
        point("slower than dense", 0.5, 1.0, model=0.9),
        point("as fast, worse", 0.5, 1.25, model=1.4),
        point("not timed", 0.5, 0.9),
    )
    names = [p.label for p in unbeaten(found, "decode")]
    assert names == ["dense", "b", "a"]
    said = """\
decode: no other point is as fast at as low a perplexity as
  the dense model
  b: perplexity ×1.0500, 1.20× as fast
  a at 0.5: perplexity ×1.2000, 1.40× as fast
"""
    assert said in frontier_table(found) and frontier_json(found)["unbeaten"]["decode"] == names
    better = frontier(point("better than dense", 0.5, 0.99, model=1.1))
    assert [p.label for p in unbeaten(better, "prefill")] == ["better than dense"]


def test_honest_lines_where_nothing_qualifies():
    slow = frontier(point("oracle", 0.5, 1.005, model=0.8), point("static", 0.5, 1.3, model=2.0))
    assert closing_line(slow) == (
        "at ≤ 1 % perplexity oracle at density 0.50 saves most FLOPs (25.0 % of the model), but none is faster than "
        "the dense model in decode on a chip, 1 thread"
    )
    untimed = frontier(point("oracle", 0.5, 1.005))
    assert closing_line(untimed).endswith("saves most FLOPs (25.0 % of the model)")
    bad = frontier(point("static", 0.5, 1.3, model=2.0), point("oracle", 0.5, 1.2, model=2.0))
    assert closing_line(bad) == (
        "at ≤ 1 % perplexity nothing saves FLOPs; the nearest is oracle at density 0.50, ×1.200"
    )
    assert closing_line(frontier()) == "at ≤ 1 % perplexity nothing saves FLOPs"


@pytest.mark.parametrize(
    ("densities", "speedups", "expected"),
    [
        ([0.25, 0.5, 1.0], [2.0, 1.2, 0.8], 0.75),
        ([1.0, 0.25, 0.5], [0.8, 2.0, 1.2], 0.75),
        ([0.5, 1.0], [0.9, 0.5], None),
        ([0.5, 1.0], [1.5, 1.1], None),
        ([0.5], [1.5], None),
        ([0.2, 0.4, 0.6, 0.8], [1.5, 0.9, 1.1, 0.9], 0.7),  # noise: the last crossing
    ],
)
def test_break_even(densities, speedups, expected):
    found = break_even(densities, speedups)
    assert found == pytest.approx(expected) if expected is not None else found is None


def test_table_and_rows():
    found = frontier(
        point("oracle", 0.25, 1.001, model=1.5),
        point("oracle", 1.0, 1.0, model=0.5),
        point("top_k", 0.625, 1.01, model=1.1, subject="routed"),
        point("static", 0.25, 1.5),
    )
    assert break_evens(found)["oracle"] == {"decode": 0.625, "prefill": 0.625}
    assert break_evens(found)["static"] == {"decode": None, "prefill": None}
    table = frontier_table(found)
    assert max(len(line) for line in table.splitlines()) <= 110
    assert "its first half is the prompt" in table and all(line.endswith("100.0 %") for line in table.splitlines()[5:9])
    assert "routed: top_k" in table and "oracle 0.62" in table and "routed: top_k faster" in table
    lines = frontier_json(found)["rows"]
    assert all(tuple(line) == POINT_COLUMNS for line in lines)
    of = {
        (line["subject"], line["rule"], line["target"], *Row(**dict(list(line.items())[3:])).key): line
        for line in lines
    }
    assert of["dense", "", 1.0, "model", "ratio", ""]["value"] == 1.0  # the dense model itself comes first
    assert of["routed", "top_k", 0.625, "model", "mlp_share", ""]["value"] == 0.625
    assert of["routed", "top_k", 0.625, "model", "model_speedup", "decode"]["value"] == 1.1
    assert of["routed", "top_k", 0.625, "L0.mlp", "density", ""]["value"] == 0.625
    assert of["routed", "top_k", 0.625, "model", "perplexity", ""]["low"] == pytest.approx(math.exp(0.9))
    assert ("dense", "static", 0.25, "model", "mlp_speedup", "prefill") not in of
    assert "in turns" not in frontier_table(frontier(point("static", 0.25, 1.5)))


def test_a_rule_that_runs_dense_claims_nothing():
    """Its quality stays, without a speed; what runs has a row of its own, a line that says why, and no break-even."""
    found = frontier(
        point("oracle", 0.5, 1.05, model=1.1, mlp=1.2),
        point("oracle", 0.9, 1.001),
        point("oracle", 0.9, 1.0, model=1.02, mlp=1.02, subject=AS_RUN)._replace(
            rows=point("oracle", 1.0, 1.0, model=1.02).rows
        ),
    )
    assert best_point(found) is None
    assert "saves most FLOPs" in closing_line(found) and "but none is faster than the dense model" in closing_line(
        found
    )
    table = frontier_table(found)
    assert max(len(line) for line in table.splitlines()) <= 110
    speeds = table.split("in turns")[1].split("break-even")[0]
    assert "0.900" not in speeds and "oracle, as run" in speeds
    assert "oracle at 0.9, as run: 1 of 1 MLPs run dense\nat this density the rule decodes slower" in table
    assert "oracle faster" in table and table.endswith("--execution rule times it")
    said = frontier_json(found)["runs_dense"]
    assert [(row["rule"], row["target"], row["places"]) for row in said] == [("oracle", 0.9, ["L0.mlp"])]
    assert "slower than dense" in said[0]["why"]
    untimed = frontier(point("oracle", 0.9, 1.2), *found.points[1:])
    assert "oracle not timed" in frontier_table(untimed)


def test_speeds_in_llama_cpp():
    timed = [
        Timed("dense", "f32", Times(300.0, 40.0, "llama_decode", "b1")),
        Timed("dense", "q8_0", None, "too narrow"),
        Timed("routed", "f32", Times(360.0, 60.0, "llama_decode", "b1")),
        Timed("routed", "q8_0", Times(500.0, 90.0, "llama_decode", "b1")),
    ]
    assert llama_cpp_lines(timed).splitlines() == [
        "llama.cpp, dense, f32: decode 40.0 tok/s, prefill 300.0",
        "llama.cpp, dense, q8_0: too narrow",
        "llama.cpp, routed, f32: decode 60.0 tok/s, prefill 360.0; × dense: 1.50 and 1.20",
        "llama.cpp, routed, q8_0: decode 90.0 tok/s, prefill 500.0",
        "  llama_decode",
        "  b1",
    ]
    first, second, *_ = llama_cpp_json(timed)
    assert first["times"]["decode"] == 40.0 and (second["times"], second["why_not"]) == (None, "too narrow")


def test_a_reason_is_given_once():
    away, odd = "llama.cpp is not installed: pip install it", "model type `gpt2` has no GGUF form"
    four = [(name, type) for name in ("dense", "routed") for type in ("f32", "q8_0")]
    assert llama_cpp_lines([Timed(*case, None, away) for case in four]) == away
    assert llama_cpp_lines([Timed("dense", type, None, odd) for type in ("f32", "q8_0")]) == f"llama.cpp: {odd}"
    times = Times(300.0, 40.0, "llama_decode", "b1")
    mixed = [Timed(*case, None, odd) if case[0] == "routed" else Timed(*case, times) for case in four]
    assert llama_cpp_lines(mixed).splitlines()[2] == f"llama.cpp, routed, f32 and q8_0: {odd}"
    assert len(llama_cpp_lines(mixed).splitlines()) == 5
