"""The house's rules: which way imports point, how long the entry points are, and that every YAML builds."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KERNELS = {"torch", "triton", "numba", "llvmlite", "numpy", "kernels"}  # llvmlite is numba's own


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def third_party(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted(ROOT.glob("kernels/**/*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_know_torch_triton_and_numba_only(path):
    assert third_party(imported(path)) <= KERNELS


def test_what_is_installed_never_imports_benchmarks():
    paths = [path for package in ("slms", "callbacks", "kernels") for path in ROOT.glob(f"{package}/**/*.py")]
    for path in [*paths, ROOT / "train.py", ROOT / "eval.py"]:
        assert "benchmarks" not in third_party(imported(path)), path


def test_functional_metrics_know_torch_only():
    paths = list(ROOT.glob("slms/metrics/functional/**/*.py")) or [ROOT / "slms/metrics/functional.py"]
    for path in paths:
        assert third_party(imported(path)) <= {"torch", "slms"}, path
        assert all(n.startswith("slms.metrics.functional") for n in imported(path) if n.startswith("slms")), path


def test_slms_never_imports_callbacks():
    paths = list(ROOT.glob("slms/**/*.py"))
    assert len(paths) > 40
    for path in paths:
        assert "callbacks" not in third_party(imported(path)), path


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_entry_points_stay_under_a_page(name):
    assert len((ROOT / name).read_text().splitlines()) <= 60


def test_no_path_of_a_machine_in_configs():
    for path in ROOT.glob("configs/*"):
        assert "/work" not in path.read_text() and "/home" not in path.read_text(), path
