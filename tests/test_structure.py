"""The house's rules: which way imports point, how long the entry points are, and that every YAML builds."""

import ast
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KERNELS = {"torch", "triton", "numba", "llvmlite", "numpy"}  # llvmlite is numba's own
LINKED = ("kernels", "callbacks")
"""Packages of slms that lie at the top: `slms/kernels` is a link to `kernels/`."""


@cache
def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


ROOMS = (
    {"slms.routing", "slms.kernels"},
    {"slms.sae", "slms.metrics", "slms.models", "slms.data"},
    {"slms.measure"},
    {"slms.report", "slms.lit"},
    {"slms.commands", "slms.callbacks"},
)
"""From the ground up: a room knows its own floor and those below. `slms` itself (files, errors, …) serves them all."""


BESIDE = (("slms.report", "slms.lit"), ("slms.lit", "slms.report"), ("slms.commands", "slms.callbacks"))


def modules() -> dict[str, Path]:
    """Dotted name → file, of everything that is shipped."""
    files = [path for top in ("slms", *LINKED) for path in (ROOT / top).rglob("*.py")]
    places = {path: path.relative_to(ROOT).with_suffix("").parts for path in files}
    full = {path: ".".join(("slms", *parts) if parts[0] in LINKED else parts) for path, parts in places.items()}
    return {name.removesuffix(".__init__"): path for path, name in full.items()}


@cache
def graph() -> dict[str, set[str]]:
    """Module → the modules that it imports anywhere, lazily too, or by name; not those for annotations alone."""
    known, arrows = modules(), {}
    for name, path in known.items():
        tree, found = ast.parse(path.read_text()), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                node.body = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {module if module in known else node.module for module in inner}
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
        arrows[name] = {module for module in found if module in known and module != name}
    return arrows


def floor(module: str) -> int | None:
    """The floor of a module's room; None for the modules of `slms` itself."""
    rooms = [i for i, rooms in enumerate(ROOMS) for room in rooms if module == room or module.startswith(room + ".")]
    return rooms[0] if rooms else None


def test_no_import_points_up():
    up = [
        f"{name} → {other}"
        for name, others in graph().items()
        for other in others
        if (here := floor(name)) is not None and (there := floor(other)) is not None and there > here
    ]
    beside = [
        f"{name} → {other}"
        for name, others in graph().items()
        for other in others
        for room, closed in BESIDE
        if name.startswith(room) and other.startswith(closed)
    ]
    assert not up + beside


def test_imports_form_no_circle():
    """Take away what imports nothing that is left, until nothing is left."""
    arrows = graph()
    while free := {name for name, others in arrows.items() if not others & arrows.keys()}:
        arrows = {name: others for name, others in arrows.items() if name not in free}
    assert not arrows


def third_party(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted(ROOT.glob("kernels/**/*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_know_torch_triton_and_numba_only(path):
    names = imported(path)
    assert third_party(names) <= {*KERNELS, "slms"}
    assert all(name.startswith("slms.kernels") for name in names if name.startswith("slms."))


@pytest.mark.parametrize("path", sorted(ROOT.glob("kernels/cpu/*.py")), ids=lambda p: p.name)
def test_compiled_kernels_state_the_type_of_their_memory(path):
    """They write through addresses, and torch's default type is another under `--trainer.precision=bf16-true`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.empty", "torch.zeros", "torch.full"):
            assert any(keyword.arg == "dtype" for keyword in node.keywords), f"line {node.lineno}"


def test_what_is_installed_never_imports_benchmarks():
    paths = [path for package in ("slms", "callbacks", "kernels") for path in ROOT.glob(f"{package}/**/*.py")]
    for path in [*paths, ROOT / "train.py", ROOT / "eval.py"]:
        assert "benchmarks" not in third_party(imported(path)), path


def test_functional_metrics_know_torch_only():
    paths = list(ROOT.glob("slms/metrics/functional/**/*.py")) or [ROOT / "slms/metrics/functional.py"]
    for path in paths:
        assert third_party(imported(path)) <= {"torch", "slms"}, path
        assert all(n.startswith("slms.metrics.functional") for n in imported(path) if n.startswith("slms")), path


def test_only_the_program_imports_callbacks():
    others = graph()
    assert len(others) > 100
    users = {name for name, known in others.items() if any(other.startswith("slms.callbacks") for other in known)}
    assert {name for name in users if not name.startswith("slms.callbacks")} == {"slms.main"}


def test_what_lies_at_the_top_is_imported_as_part_of_slms():
    """`kernels` alone may be somebody else's package: write `from slms.kernels import …`."""
    for top in ("slms", *LINKED, "tests", "benchmarks", "examples"):
        for path in (ROOT / top).rglob("*.py"):
            assert not third_party(imported(path)) & {*LINKED, "configs"}, f"{path}: import it from slms"
    for name in (*LINKED, "configs"):
        assert (ROOT / "slms" / name).resolve() == ROOT / name


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_entry_points_stay_under_a_page(name):
    assert len((ROOT / name).read_text().splitlines()) <= 60


def test_every_file_of_the_package_is_shipped():
    """What is no Python is in the wheel only where a pattern of pyproject.toml says so."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["slms"]
    shipped = {path for pattern in patterns for path in (ROOT / "slms").glob(pattern)}
    files = {path for path in (ROOT / "slms").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    inside = {path for path in files if path.suffix != ".py"}
    assert inside <= shipped, inside - shipped


def test_no_path_of_a_machine_in_configs():
    for path in ROOT.glob("configs/*"):
        assert "/work" not in path.read_text() and "/home" not in path.read_text(), path


def test_no_line_is_kept_from_the_formatter():
    """An argument with a name, or a variable, says more than a hand-set line."""
    mark = "fmt: " + "skip"
    files = [
        path for top in ("slms", "kernels", "callbacks", "benchmarks", "tests") for path in (ROOT / top).rglob("*.py")
    ]
    assert not [path for path in files if mark in path.read_text()]
