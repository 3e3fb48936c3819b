"""The ranges of pyproject.toml, the tested set and the script that tries them agree."""

import os
import re
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.versions import JOB, ROOT, constraints, lowest, pins, pythons, requirements


def test_every_range_has_a_lower_bound_that_it_contains():
    for line in requirements():
        (pin,) = Requirement(lowest(line)).specifier
        assert pin.operator == "==" and Requirement(line).specifier.contains(pin.version), line


def test_known_thieves_and_no_installed_torch_are_excluded():
    (lightning,) = [Requirement(line).specifier for line in requirements() if line.startswith("lightning>")]
    assert [v for v in ("2.6.1", "2.6.2", "2.6.3", "2.6.4") if v not in lightning] == ["2.6.2", "2.6.3"]
    (torch,) = [Requirement(line).specifier for line in requirements() if line.startswith("torch>")]
    assert all(v in torch for v in ("2.11.0", "2.15.0", "2.99.0"))


def test_the_tested_set_is_versions_only():
    names = [re.fullmatch(r"([\w.-]+)==[\w.]+", line)[1].lower() for line in constraints()]
    assert names == sorted(names) and len(names) == len(set(names))


@pytest.mark.parametrize("which", ["lowest", "newest", "constraints"])
def test_another_torch_takes_the_place_of_the_pinned_one(which):
    kept = [pin for pin in pins(which, None) if not pin.startswith("torch==")]
    assert pins(which, "2.14.1") == [*kept, "torch==2.14.1"]
    assert pins(which, "tested") == [*kept, next(pin for pin in constraints() if pin.startswith("torch=="))]


def test_stated_pythons_are_those_that_ci_tries():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [line.rpartition(" ")[2] for line in project["classifiers"]]
    weekly = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert project["requires-python"] == f">={stated[0]}" and all(f'"{version}"' in weekly for version in stated)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["target-version"] == "py311"


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_file_compiles_without_a_warning(version, tmp_path):
    """A newer Python warns of what a later one will refuse. Running the code there needs a torch: `versions.py`."""
    if version not in pythons():
        pytest.skip(f"Python {version} is not installed")
    rooms = [ROOT / room for room in ("slms", "kernels", "callbacks", "benchmarks", "examples", "train.py", "eval.py")]
    command = [pythons()[version], "-W", "error", "-m", "compileall", "-q", "-f", *rooms]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_same_job_and_tries_both_ends():
    ci, weekly = (ROOT / ".ci" / "run").read_text(), (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert all(flag in ci for flag in JOB) and "tests/versions.py newest" in ci
    assert "schedule:" in weekly and "[lowest, newest]" in weekly
