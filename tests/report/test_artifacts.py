"""Result files have the right names and contents."""

import json
import math

from slms.report.artifacts import artifact_directory, csv_text, write_csv, write_json


def test_a_directory_for_every_subject(tmp_path):
    run = tmp_path / "runs" / "routed" / "20260101-000000"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    assert artifact_directory("a", "layers", str(run)).as_posix() == "a/layers/routed-20260101-000000"
    assert artifact_directory("a", "layers", str(run.parent)).as_posix() == "a/layers/routed"
    assert artifact_directory("a", "layers", "../..").as_posix() != "a/layers/../.."
    assert artifact_directory("a", "layers", "org/name:tag").as_posix() == "a/layers/org-name-tag"


def test_what_was_not_measured_is_an_empty_cell_and_null(tmp_path):
    rows = [["a,b", 0.5, None], ["c", math.nan, math.inf]]
    text = 'name,x,y\n"a,b",0.5,\nc,,\n'
    assert csv_text(["name", "x", "y"], rows) == text
    assert write_csv(tmp_path / "d" / "t.csv", ["name", "x", "y"], rows).read_text() == text
    assert json.loads(write_json(tmp_path / "t.json", {"x": math.nan, "y": [1.5]}).read_text()) == {
        "x": None,
        "y": [1.5],
    }
