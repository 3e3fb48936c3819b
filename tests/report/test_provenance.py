"""The facts of a run are plain strings, and its command holds no path of the machine."""

import hashlib

from slms.json_values import from_json_values
from slms.report.provenance import command_line, config_digest, hardware, versions


def test_command_line_can_be_typed_again():
    assert command_line(["/x/y/eval.py", "pathways", "runs/a b"]) == "python eval.py pathways 'runs/a b'"


def test_versions_and_hardware_are_strings():
    found = versions()
    assert {"slms", "python", "torch", "lightning", "transformers"} <= found.keys()
    assert from_json_values(dict[str, str], found) == found
    machine = hardware("cpu")
    assert machine["device"] == "cpu" and int(machine["cores"]) > 0
    assert from_json_values(dict[str, str], machine) == machine


def test_config_digest(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert config_digest(tmp_path / "config.yaml") == "sha256:" + hashlib.sha256(b"a: 1\n").hexdigest()
    assert config_digest(tmp_path / "none.yaml") is None
