"""benchmarks/gpu.sh runs dry without a GPU, keeps what is done, and fails where a kernel is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_setting import Setting

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux alone")
def test_dry_run(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [SCRIPT, "out", "--device", "cpu"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["versions"]["torch"] and found["device"]
    parts = found["parts"]
    assert list(parts) == list(gpu.PARTS) and all(part["state"] == "done" for part in parts.values())
    assert all(row["ok"] for row in parts["parity"]["rows"]) and not parts["parity"]["left_out"]
    kernels = {row["kernel"] for row in parts["parity"]["rows"]}
    assert {"pathways", "gate rows", "gate product", "gate epilogue", "rows' sums", "router's choice"} <= kernels
    assert {"twice, gate rows", "largest scores", "queries of heads", "outputs of heads"} <= kernels
    assert {row["pass"] for row in parts["heads"]["rows"]} == {"prompt", "train", "decode"}
    assert {row["pass"] for row in parts["gate"]["rows"]} == {"forward", "train"} and not parts["gate"]["left_out"]
    assert {row.get("model") for row in parts["models"]["rows"]} >= {"dense", "gate ρ .5"}
    assert [row["left_out"] for row in parts["rivals"]["left_out"]] == ["ScatterMoE"]
    written = (tmp_path / "out" / "results.md").read_text()
    assert "A dry run on tiny shapes" in written and "tiny model with random weights" in written
    assert "## training: done" in written and "| dense |" in written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fast"], "--fast is not an option"),
        (["a", "b"], "there are two output directories, a and b"),
        (["--device", "tpu"], "--device is 'tpu'; it must be cuda or cpu"),
        (["--device"], "--device is ''; it must be cuda or cpu"),
    ],
)
def test_bad_arguments_of_the_script(arguments, said, tmp_path):
    done = subprocess.run([SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and not list(tmp_path.iterdir())


def test_a_part_keeps_its_rows_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    def rows(setting):
        yield {"kernel": "a", "ok": True}
        yield from setting.rows("b", lambda: [{"kernel": "b", "ok": False}])
        yield from setting.rows("c", lambda: [1 / 0])
        yield from setting._replace(deadline=0.0).rows("d", lambda: [{"kernel": "d"}])

    monkeypatch.setitem(gpu.PARTS, "parity", rows)
    gpu.begin(tmp_path, "cpu")
    assert gpu.run("parity", tmp_path, Setting("cpu", float("inf"))) == 1
    (tmp_path / "status.txt").write_text("parity 90 3 1\ngate 100 100 124\n")
    gpu.report(tmp_path, "cpu")
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert parts["parity"]["state"] == "failed" and parts["gate"]["state"] == "stopped at its limit"
    assert parts["models"]["state"] == "not run" and [row["kernel"] for row in parts["parity"]["rows"]] == ["a", "b"]
    written = (tmp_path / "results.md").read_text()
    assert "- left out: c (ZeroDivisionError: division by zero)" in written
    assert "- left out: d (no time was left)" in written
    gpu.begin(tmp_path, "cpu")
    assert not (tmp_path / "parity.jsonl").exists() and not (tmp_path / "results.json").exists()


def test_bad_flags(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for arguments, said in ((["begin"], "no CUDA device"), (["gate", "--device", "cpu"], "has no environment.json")):
        with pytest.raises(SystemExit) as stop:
            gpu.main([*arguments, "--out", str(tmp_path)])
        assert stop.value.code == 2 and said in capsys.readouterr().err
