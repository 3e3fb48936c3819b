"""Every Triton kernel at every shipped tile, compiled for chips that are not at hand: it must fit without spilling."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import costs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux alone"),
]


@pytest.fixture(scope="module")
def table():
    """Every tile in every type for gated MLPs, which take the most; `python -m kernels.gpu.aot` compiles plain ones."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "kernels.gpu.aot", "--quick", "--json"]
    root = Path(costs.__file__).parents[1]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_all_are_compiled(table):
    names = {row["name"] for row in table}
    assert {row["chip"] for row in table} == {80, 90}
    assert len(table) == 2 * len(names) == 2 * 39
    for kernel in ("up", "down", "hidden_gradients", "weight_gradient"):
        assert {f"{kernel} {t} gated {s}" for t in ("bf16", "fp16", "fp32") for s in ("large", "small")} <= names


def test_they_fit(table):
    shared = {80: 163 * 1024, 90: 227 * 1024}
    for row in table:
        assert row["spills"] == 0, row
        assert row["registers"] * row["threads"] <= 65536, row
        assert row["shared"] <= shared[row["chip"]], row


def test_tensor_cores_and_wide_loads(table):
    for row in table:
        kernel, *rest = row["name"].split()
        if kernel in ("up", "down", "hidden_gradients", "weight_gradient", "slices"):
            assert row["wide_loads"], row
        if {"bf16", "fp16"} & set(rest) and kernel in ("up", "down", "hidden_gradients", "weight_gradient"):
            expected = ("wgmma",) if row["chip"] == 90 and "large" in rest else ("mma", "wgmma")
            assert row["tensor_core"] in expected, row
