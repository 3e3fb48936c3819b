"""Runs the tests of the Triton kernels in Triton's interpreter, which must be chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a CUDA device tests/kernels/on_device run as they are")
@pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux alone")
def test_in_the_interpreter():
    tests = Path(__file__).parent / "on_device"
    command = [sys.executable, "-m", "pytest", str(tests), "--no-header", "-x", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
