"""docs/formats.md describes what the code writes: the same objects, fields, types and columns, in the same order."""

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import torch

from slms.commands.sparsity import COLUMNS as SPARSITY_COLUMNS
from slms.data.probe_tasks import Task
from slms.measure import rows, schema
from slms.measure.causal import Cell
from slms.measure.evidence import Activities, Evidence
from slms.measure.frontier import Point
from slms.measure.metrics import METRICS
from slms.measure.probes import Margins, probe_rows
from slms.measure.rows import MODEL, log_keys
from slms.measure.suite import SuiteModel
from slms.models.capture import COLUMNS as CAPTURE_COLUMNS
from slms.report import feature_schema, feature_tables
from slms.report.compare import COLUMNS as COMPARE_COLUMNS
from slms.report.metrics_csv import Logged
from slms.report.specialization import UNIT_COLUMNS
from slms.report.study import STUDY_COLUMNS
from slms.sae.export import ARCHITECTURES
from slms.sae.quality import Quality

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
OBJECTS = [
    kind for kind in {**vars(rows), **vars(schema), **vars(feature_schema)}.values() if dataclasses.is_dataclass(kind)
]
POINT_METRICS = "nats perplexity ratio mlp_flops mlp_share model_flops model_share tokens_per_second".split()
POINT_METRICS += "dense_tokens_per_second mlp_speedup model_speedup density".split()
SPARSITY_METRICS = "frac pr kept sparsity cett perplexity".split()
PROBE_METRICS = [row.metric for row in probe_rows(Task("", "", "", ()), Margins(*torch.zeros(3, 1)))]
WORDS = {str: "string", int: "integer", float: "number", Any: "any", dict[str, Any]: "any"}


def table(head: str) -> list[list[str]]:
    """The cells of the table whose header row starts with `head`, code marks of the first column taken off."""
    found = re.search(rf"^\| {re.escape(head)} \|.*\n\|[-| ]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found, f"no table | {head} | in docs/formats.md"
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in found.group(1).splitlines()]
    return [[cells[0].strip("` |"), *cells[1:]] for cells in rows]


def section(name: str) -> list[list[str]]:
    """The cells of the field table under `### name`."""
    found = re.search(rf"^### {name}\n\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found, f"no section ### {name} in docs/formats.md"
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in found.group(1).splitlines()[2:]]
    return [[cells[0].strip("` "), *cells[1:]] for cells in rows]


def in_words(kind: Any) -> str:
    if kind in WORDS:
        return WORDS[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return in_words(inner) if in_words(inner) == "any" else f"{in_words(inner)} or null"
    if origin is typing.Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin is list:
        return f"list of {in_words(arguments[0])}"
    if origin is dict:
        return f"object of {in_words(arguments[1])}"
    return kind.__name__


@pytest.mark.parametrize("kind", OBJECTS, ids=lambda kind: kind.__name__)
def test_fields_and_types(kind):
    hints = typing.get_type_hints(kind)
    wanted = [[field.name, in_words(hints[field.name])] for field in dataclasses.fields(kind)]
    assert [row[:2] for row in section(kind.__name__)] == wanted


def test_no_section_of_an_object_that_is_gone():
    assert sorted(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)) == sorted(kind.__name__ for kind in OBJECTS)


def test_columns():
    assert [row[0] for row in table("column")] == list(Logged._fields)
    assert [row[0] for row in table("column of compare.csv")][:-1] == list(COMPARE_COLUMNS)
    assert [row[0] for row in table("column of matrix.csv")] == list(Cell._fields)
    assert [row[0] for row in table("column of study.csv")] == list(STUDY_COLUMNS)
    for name, fields in (("suite", SuiteModel._fields), ("dynamick", Point._fields)):
        assert [row[0] for row in table(f"column of {name}.csv")][:-1] == list(fields[:-1])
    for name, columns in (("features.csv", feature_tables.COLUMNS), ("pathways.csv", feature_tables.PATHWAY_COLUMNS)):
        named = [column for row in table(f"column of {name}") for column in row[0].split("`, `")]
        assert sorted(named) == sorted(columns)


def test_columns_of_sparsity_and_specialization():
    named = [column for row in table("column of sparsity.csv") for column in row[0].split("`, `")]
    assert named == SPARSITY_COLUMNS
    measured = [name for name, metric in METRICS.items() if metric.of in (Evidence, Activities)]
    assert [row[0] for row in table("metric of specialization.csv")] == measured
    named = [column for row in table("column of units.csv") for column in row[0].split("`, `")]
    assert named == [*UNIT_COLUMNS, "si_<family>", "z_<family>", "class_<family>", "top_tokens"]


def test_tensors_of_a_capture():
    assert [row[0] for row in table("tensor of a shard")][:-1] == list(CAPTURE_COLUMNS)


def test_metrics_of_routed_layers(results_factory):
    """Every metric of the table METRICS, as it is logged; SI given the token is not measured while training."""
    named = [row[0] for row in table("metric")]
    others = {"si_given_token", *PROBE_METRICS, *POINT_METRICS[:-1], *SPARSITY_METRICS}
    trained = [name for name, metric in METRICS.items() if metric.of is not Activities and name not in others]
    assert named == [{"si": "si_<family>"}.get(name, name) for name in trained]
    logged = {key.split("/")[1] for key in log_keys([r for r in results_factory().rows if r.place != MODEL], "val")}
    assert {name for name in logged if not name.startswith("si_")} <= set(named)


def test_metrics_of_commands():
    """In the words of METRICS."""
    of = {"probes.csv": PROBE_METRICS, "dynamick.csv": POINT_METRICS, "sparsity.json": SPARSITY_METRICS}
    for file, names in of.items():
        found = table(f"metric of {file}")
        assert sorted(found) == sorted([name, METRICS[name].meaning] for name in names)


def test_schema_version():
    (row,) = [row for row in section("Results") if row[0] == "schema"]
    assert row[2].startswith(f"{schema.SCHEMA};")


def test_architectures_of_coders_and_their_tensors():
    rows = {cells[0]: cells for cells in table("architecture")}
    assert rows.keys() == ARCHITECTURES.keys()
    for name, (kind, tensors) in ARCHITECTURES.items():
        assert kind in re.findall(r"`(\w+)`", rows[name][1]) or "the same" in rows[name][1]
        assert re.findall(r"`(\w+)`", rows[name][2]) == list(tensors)


def test_metrics_of_quality_json():
    (json_row,) = re.findall(r"^\| `sae/<coder>/<text>/quality.json` .*$", PAGE, re.MULTILINE)
    assert {*Quality._fields, "rows", "si"} <= set(re.findall(r"`(\w+)`", json_row))
