"""Every Triton kernel fits without spilling at every shipped tile, compiled for chips that need not be here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from benchmarks.gpu_resources import PRODUCTS, READERS, VERSION, Resources, fault
from slms.kernels import backends

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux alone"),
]
PERSISTENT = PRODUCTS[:3]


@pytest.fixture(scope="module")
def table():
    """Every tile in bfloat16 and float32; the command without --quick checks all types, activations and odd sizes."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu_resources", "--quick", "--json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_all_are_compiled(table):
    names = {row["name"] for row in table}
    assert {row["chip"] for row in table} == {80, 90}
    assert len(table) == 2 * 148
    kernels = ("count", "scan", "place", "pick bf16", "pick fp32")
    assert {f"{kernel} {p} pathways" for kernel in kernels for p in (16, 32, 64, backends.GPU_PATHWAYS)} <= names
    most = backends.GPU_UNITS
    assert {f"pick_many {t} {most} pathways" for t in ("bf16", "fp32")} <= names
    assert {f"select bf16 {most} neurons", f"keep fp32 {most}"} <= names
    assert {"weigh bf16 1", "weigh_gradients fp32 1", "few_queries bf16 one", "few_outputs fp32 few 64"} <= names
    for kernel in PRODUCTS:
        assert {f"{kernel} {t} {size}" for t in ("bf16", "fp32") for size in ("large", "small")} <= names
    assert {row["gated"] for row in table if row["name"] == "up bf16 large"} == {False, True}


def test_they_fit(table):
    shared = {80: 163 * 1024, 90: 227 * 1024}
    for row in table:
        assert row["spills"] == 0, row
        assert row["registers"] * row["threads"] <= 65536, row
        assert row["shared"] <= shared[row["chip"]], row
        assert row["programs"] >= 1
        assert (row["resident"] > 0) == (row["name"].split()[0] in PERSISTENT), row
        if triton.__version__.startswith(VERSION):
            assert row["resident"] <= row["programs"], row  # no more than can run at once


def test_tensor_cores_and_wide_loads(table):
    for row in table:
        kernel, *rest = row["name"].split()
        if kernel in (
            *PRODUCTS,
            *READERS,
            "weigh",
            "weigh_gradients",
            "masked_product",
        ):
            assert row["wide_loads"], row
        if "bf16" in rest and kernel in PRODUCTS:
            expected = ("wgmma",) if row["chip"] == 90 and "large" in rest else ("mma", "wgmma")
            assert row["tensor_core"] in expected, row


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(spills=8), "8 bytes are spilled"),
        pytest.param(
            dict(programs=1),
            "takes 1 programs",
            marks=pytest.mark.skipif(not triton.__version__.startswith(VERSION), reason="read off another Triton"),
        ),
        (dict(programs=0, resident=0), "takes 0 programs"),
        (dict(shared=228 * 1024), "233472 shared bytes"),
        (dict(tensor_core="mma"), "tensor cores"),
        (dict(wide_loads=False), "16 bytes"),
    ],
)
def test_a_fault_is_named(table, change, said):
    row = next(Resources(**row) for row in table if row["name"] == "down bf16 large" and row["chip"] == 90)
    assert fault(row) is None
    assert said in fault(row._replace(**change))
