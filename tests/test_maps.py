"""The docstring of every package is its map: it names every module."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(path.parent for top in ("slms", "kernels", "callbacks") for path in (ROOT / top).rglob("__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_docstring_of_a_package_names_every_module(package):
    said = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    inside = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    words = set(re.findall(r"\w+", said))
    assert inside - {"__init__"} <= words, sorted(inside - {"__init__"} - words)
