"""The doctor reports what is known of this machine, and planted packages, caches and hubs."""

import importlib.metadata
import itertools
import json
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import eval as evaluation
from slms.measure import doctor
from slms.measure.doctor import ask_hub, hub_bases, look_at_cache
from slms.models.source import EMBEDDED

ROOT = Path(__file__).resolve().parents[2]


def test_the_doctor_sees_what_is_here_and_writes_it(tmp_path, capsys):
    evaluation.main(["doctor", f"--output_dir={tmp_path}"])
    out = capsys.readouterr().out
    seen = json.loads((tmp_path / "doctor" / "doctor.json").read_text())
    assert seen["system"]["torch"] == importlib.metadata.version("torch") and seen["system"]["processor"] in out
    assert {kernel["backend"] for kernel in seen["kernels"]} <= {"dense", "grouped", "rows", "triton"}
    assert len(seen["kernels"]) == 9 and seen["hub"] == "HF_HUB_OFFLINE forbids asking the hub" and seen["hub"] in out
    assert seen["seconds"] > 0
    assert max(map(len, out.splitlines()[:-1])) <= 120


def test_the_tested_versions_are_those_of_the_file_at_the_top_and_fit_the_ranges():
    versions = doctor.constraints()
    assert doctor.CONSTRAINTS.read_bytes() == (ROOT / "constraints.txt").read_bytes()
    named = {canonicalize_name(name): version for name, version in versions.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for need in map(
        Requirement, [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    ):
        assert need.specifier.contains(named[canonicalize_name(need.name)]), need


def test_what_is_newer_than_tested_is_named(capsys, tmp_path, monkeypatch):
    numpy, torch = (importlib.metadata.version(name) for name in ("numpy", "torch"))
    planted = {"numpy": "1.0", "torch": Version(torch).public, "scipy": "999", "absent-package": "1"}
    monkeypatch.setattr(doctor, "constraints", lambda: planted)
    evaluation.main(["doctor", f"--output_dir={tmp_path}"])
    assert f"  newer than tested: numpy {numpy} (1.0)\n" in capsys.readouterr().out
    seen = json.loads((tmp_path / "doctor" / "doctor.json").read_text())
    assert seen["newer"] == [{"name": "numpy", "installed": numpy, "tested": "1.0"}]


@pytest.mark.parametrize("trouble", [None, "the hub cannot be reached", ValueError("no such repository")])
def test_the_hub_answers_or_not(trouble, monkeypatch):
    def hub_trouble(repo, timeout_s):
        if isinstance(trouble, ValueError):
            raise trouble
        return trouble

    monkeypatch.setattr(doctor, "hub_trouble", hub_trouble)
    told = ask_hub("a/b")
    assert told == trouble if isinstance(trouble, str) else told.startswith("answers in 0.0 s")


def test_a_warm_cache_is_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("SLMS_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "cached_snapshot", lambda name: EMBEDDED["stories-1m"] if name == "a/b" else None)
    cold = look_at_cache(["a/b", "c/d"])
    assert (cold.block_files, cold.bytes, cold.calibrations) == (0, 0, 0)
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "x.npz").write_bytes(b"12345")
    warm = look_at_cache(["a/b", "c/d"])
    assert (warm.block_files, warm.bytes) == (1, 5) and warm.bases == {"a/b": True, "c/d": False}
    assert warm.directory == str(tmp_path)


def test_the_bases_of_the_configs_are_hub_ids():
    assert "roneneldan/TinyStories-1M" in hub_bases() and all(name.count("/") == 1 for name in hub_bases())
