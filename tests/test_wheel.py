"""The wheel holds what train.py and eval.py need under one name, and nothing of the checkout's other rooms.

`.ci/run` installs it elsewhere and runs it (`tests/wheel.py`).
"""

import tomllib
import zipfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from tests.wheel import ROOT, build


@pytest.fixture(scope="module")
def inside(tmp_path_factory) -> set[str]:
    """The names of the files in the wheel."""
    if Version(version("setuptools")) < Version("77"):
        pytest.skip("setuptools before 77 cannot build it; the extra `test` installs a newer one")
    return set(zipfile.ZipFile(build(tmp_path_factory.mktemp("wheel"))).namelist())


def test_the_only_package_is_slms(inside):
    tops = {name.split("/")[0] for name in inside}
    assert "slms" in tops and len(tops) == 2 and all(top.startswith("slms") for top in tops)
    assert not [name for name in inside if {"tests", "benchmarks", "docs", "__pycache__"} & set(Path(name).parts)]


def test_every_file_of_the_package_is_in_it(inside):
    for room, there in {
        "slms": "slms",
        **{name: f"slms/{name}" for name in ("callbacks", "configs", "kernels")},
    }.items():
        files = [path for path in (ROOT / room).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert files
        missing = {f"{there}/{path.relative_to(ROOT / room).as_posix()}" for path in files} - inside
        assert not missing, missing


def test_its_programs_are_the_documented_ones(inside):

    programs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(programs) == {"slms-train", "slms-eval", "sparsity"}
    for target in programs.values():
        module, _, name = target.partition(":")
        assert callable(getattr(import_module(module), name))
