"""The examples run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_route_by_hand(tmp_path):
    code = (ROOT / "examples" / "route_by_hand.py").read_text().partition('"""\n\nimport')[2]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("#")]) <= 40
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "route_by_hand.py")]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    dense, routed = (line.split()[2] for line in run.stdout.splitlines() if "perplexity" in line)
    assert 1 < float(dense) < float(routed) < 1.1 * float(dense), run.stdout
    assert "32 pathways, the best 11 chosen by its linear router" in run.stdout
    assert (tmp_path / "routed-by-hand" / "model.safetensors").is_file()
