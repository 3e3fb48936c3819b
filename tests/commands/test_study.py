"""`eval.py study` trains what is missing, goes on where it stopped, and refuses in one line."""

import csv
import json
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import eval as evaluation
import slms.commands.study as command
import slms.commands.study_jobs as jobs_of
from slms.measure.study import Documents, Speedups, StudyRun

SMALL = """
--model.base.source=embedded --model.calibration_tokens=1024 --data.block_size=64 --data.batch_size=2
--data.train_tokens=2048 --data.epoch_tokens=1024 --data.val_tokens=2048 --trainer.max_epochs=1 --trainer.max_steps=2
--trainer.accelerator=cpu --results.random_model=false
""".split()


def study(*args: str, out) -> None:
    evaluation.main(["study", "--config=routed_tinystories", *args, f"--runs={out / 'runs'}", f"--output_dir={out}"])


@pytest.mark.slow
def test_trains_what_is_missing_and_writes_after_every_run(tmp_path, capsys, caplog, monkeypatch):
    flags = ["--seeds=0", "--controls=dense", "--seconds=0.2", *SMALL]
    trained, train = [], command.train_job

    def stopped(place, job, *rest):
        if job.arm == "dense" and len(trained) == 1:
            raise OSError("no space left")
        trained.append(job.name)
        return train(place, job, *rest)

    monkeypatch.setattr(command, "train_job", stopped)
    with pytest.raises(SystemExit) as stop:
        study(*flags, out=tmp_path)
    assert stop.value.code == 2 and "no space left" in capsys.readouterr().err
    (directory,) = (tmp_path / "study" / "routed_tinystories").glob("arms-*")
    assert [row["arm"] for row in csv.DictReader((directory / "study.csv").open())] == ["routed"]
    trained.append("on")
    (file,) = (tmp_path / "runs").glob("*/routed-s0*/*/llm_routing_results.json")
    written = json.loads(file.read_text())
    written["run"]["versions"]["slms"] = "0.0.1"  # an upgrade between the two runs
    file.write_text(json.dumps(written))
    study(*flags, out=tmp_path)
    assert trained == ["routed-s0", "on", "dense-s0"]  # the first was not trained again
    rows = list(csv.DictReader((directory / "study.csv").open()))
    assert [(row["arm"], row["seed"], row["steps"]) for row in rows] == [("routed", "0", "2"), ("dense", "0", "2")]
    assert float(rows[0]["kl"]) == written["losses"]["kl"]["nats"] > 0
    found = json.loads((directory / "study.json").read_text())
    assert [arm["verdict"] for arm in found["arms"]] == ["", "not shown (1 seed of 3)"]
    assert found["arms"][1]["low"] <= found["arms"][1]["minus_routed"] <= found["arms"][1]["high"]
    assert (directory / "study.png").stat().st_size > 5000
    printed, said = capsys.readouterr()
    assert re.search(
        r"dense-s0 was trained by other versions than routed-s0: slms \S+, not 0\.0\.1", said + caplog.text
    )
    assert "dense-s0: training, run 2 of 2" in printed and "not shown (1 seed of 3)" in printed


def test_no_call_replaces_the_results_of_another_and_speeds_are_shared(tmp_path, monkeypatch):
    """Seeds, controls and timing have directories of their own; a speed depends on its run, seconds and hardware."""
    results = SimpleNamespace(run=SimpleNamespace(versions={}))
    timed, threads = [], ["1"]

    def finished(place, job):
        run = place / job.name / "1"
        run.mkdir(parents=True, exist_ok=True)
        (run / "llm_routing_results.json").touch()
        os.utime(run / "llm_routing_results.json", (1, 1))
        return run

    def row(arm, seed, run, results, speed):
        return StudyRun(arm, seed, run, 1.0, 1.0, 0.0, 1, 1, 1.0, 1.0, 1.0, 1.0, speed.decode, speed.prompt)

    monkeypatch.setattr(command, "finished_run", finished)
    monkeypatch.setattr(command, "read_results", lambda run: results)
    monkeypatch.setattr(command, "study_run", row)
    monkeypatch.setattr(command, "documents_of", lambda results: Documents([1.0, 2.0], [1, 2]))
    monkeypatch.setattr(command, "run_base", lambda run: run)
    monkeypatch.setattr(command, "load_base", lambda base: SimpleNamespace(model=None))
    monkeypatch.setattr(command, "open_model", lambda run: SimpleNamespace(model=None))
    monkeypatch.setattr(command, "hardware", lambda: {"threads": threads[0]})
    monkeypatch.setattr(command, "write_figure", lambda path, figure: None)

    def measured(dense, model, seconds):
        timed.append(seconds)
        return Speedups(seconds, float(threads[0]))

    monkeypatch.setattr(command, "measure_speedups", measured)
    tables = tmp_path / "study" / "routed_tinystories"

    def tables_after(seeds="0,1", controls="dense,static", seconds="2") -> dict[str, str]:
        study(f"--seeds={seeds}", f"--controls={controls}", f"--seconds={seconds}", out=tmp_path)
        return {path.parent.name: path.read_text() for path in tables.glob("*/study.csv")}

    made = tables_after()
    assert timed == [2.0] * 3  # one run of each arm
    for narrower in ({"controls": "static"}, {"seeds": "0"}, {"seconds": "0"}, {"seconds": "3"}):
        after = tables_after(**narrower)
        assert len(after) == len(made) + 1 and made.items() <= after.items()
        made = after
    assert timed == [2.0] * 3 + [3.0] * 3
    threads[0] = "2"
    after = tables_after()
    assert len(after) == len(made) + 1 and made.items() <= after.items() and timed[6:] == [2.0] * 3
    assert tables_after() == after and len(timed) == 9
    assert len(list((tmp_path / "runs").iterdir())) == 1  # the runs are those of every call


def test_one_run_at_a_time_trains_on_each_device(tmp_path, monkeypatch, capsys):
    """Two at once, each on one of the GPUs that the study sees; after a failure all are stopped and none begins."""
    script = """
import os, sys, time, pathlib
place = pathlib.Path(sys.argv[1]) / sys.argv[2]
(place / "run").mkdir(parents=True)
(place / "run" / "config.yaml").touch()
print("GPU", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
if "static" in sys.argv[2]:
    while not list(place.parent.glob("dense-s1/run")): time.sleep(0.01)
    sys.exit("no memory")
if "s1" in sys.argv[2]: time.sleep(60)
(place / "run" / "llm_routing_results.json").touch()
"""
    monkeypatch.setattr(jobs_of, "TRAIN", (sys.executable, "-c", script, str(tmp_path)))
    monkeypatch.setattr(command.Job, "flags", property(lambda job: []))
    popen = jobs_of.subprocess.Popen
    monkeypatch.setattr(
        jobs_of.subprocess, "Popen", lambda words, **more: popen([*words[:4], words[-1].partition("=")[2]], **more)
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,6,4,7")
    jobs = [command.Job(arm, seed) for arm, seed in (("dense", 0), ("static", 0), ("dense", 1), ("dense", 2))]
    with pytest.raises(ValueError, match=r"static-s0 ended with code 1 \(no memory\)"):
        command.train_at_once(tmp_path, jobs, tmp_path / "x.yaml", [], [3, 5])
    seen = {path.stem: path.read_text().split("GPU ")[1][0] for path in tmp_path.glob("*.log")}
    assert set(seen) == {"dense-s0", "static-s0", "dense-s1"} and set(seen.values()) == {"6", "7"}
    assert command.finished_run(tmp_path, jobs[0]) and not command.finished_run(tmp_path, jobs[2])
    assert "dense-s0: trained, 1 of 4" in capsys.readouterr().out


def stand_in(monkeypatch, script: str) -> list:
    """Let `script` be the training, with its options; the processes that have started are added to the list."""
    popen, started = jobs_of.subprocess.Popen, []

    def start(*args, **more):
        started.append(popen(*args, **more))
        return started[-1]

    monkeypatch.setattr(jobs_of, "TRAIN", (sys.executable, "-c", f"import sys, time, pathlib\n{script}"))
    monkeypatch.setattr(jobs_of.subprocess, "Popen", start)
    return started


def test_a_failure_also_stops_a_training_that_is_just_starting(tmp_path, monkeypatch):
    """The second job looks for its checkpoint until the first has failed."""
    started = stand_in(
        monkeypatch,
        f"if '--name=static-s0' in sys.argv: sys.exit('no memory')\n"
        f"time.sleep(3); pathlib.Path({str(tmp_path / 'trained')!r}).touch()",
    )

    def slow(run):
        while not started or started[0].poll() is None:
            time.sleep(0.01)
        time.sleep(0.5)

    monkeypatch.setattr(jobs_of, "newest_checkpoint", slow)
    stopped = tmp_path / "dense-s0" / "run"
    (stopped / "checkpoints").mkdir(parents=True)
    (stopped / "config.yaml").touch()
    jobs = [command.Job("static", 0), command.Job("dense", 0)]
    with pytest.raises(ValueError, match="static-s0 ended with code 1"):
        command.train_at_once(tmp_path, jobs, tmp_path / "x.yaml", [], [0, 1])
    assert not (tmp_path / "trained").exists()


def test_another_thread_than_the_main_one_can_study():
    def enter():
        with jobs_of.ends_on_sigterm():
            return signal.getsignal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result() is before


@pytest.mark.parametrize("devices", [[], ["--devices=0,1"]])
def test_sigterm_ends_the_trainings_too(devices, tmp_path, monkeypatch):
    started = stand_in(monkeypatch, "time.sleep(60)")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def end():
        while len(started) < len(devices) + 1:
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    def unheard(number, frame):
        raise RuntimeError("SIGTERM was not heard")

    before = signal.signal(signal.SIGTERM, unheard)
    try:
        threading.Thread(target=end, daemon=True).start()
        with pytest.raises(SystemExit) as stop:
            study("--seeds=0", "--controls=dense", *devices, out=tmp_path)
        assert stop.value.code == 128 + signal.SIGTERM
        assert [process.poll() for process in started] == [-signal.SIGTERM] * (len(devices) + 1)
        assert signal.getsignal(signal.SIGTERM) is unheard
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_training_that_fails_is_one_line_with_its_reason(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        study("--seeds=0", "--controls=dense", *SMALL, "--model.optimizer.lr=-1", out=tmp_path)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert "routed-s0 ended with code 2" in said and "model.optimizer.lr" in said and "routed-s0.log has more" in said


def test_by_default_a_study_has_the_controls_that_its_routing_can_have():
    options = {"router": "query_norm", "importance": "norm", "gate": "unit", "n_shared_heads": 0}
    free = [f"model.routing.{name}={value}" for name, value in options.items()]
    heads = command._checked("routed_attention_tinystories", [0], None, [])[1]
    assert heads == ["dense", "static", "frozen_router", "query_norm"]
    without = command._checked("routed_attention_tinystories", [0], None, free)[1]
    assert without == ["dense", "static"]
    assert "query_norm" not in command._checked("routed_tinystories", [0], None, [])[1]


@pytest.mark.parametrize(
    "args, message",
    [
        (["--controls=dense,statik"], "--controls statik: it must be one of dense, static, static_flops"),
        (["--controls=dense,dense"], "--controls dense,dense: give each once"),
        (["--seeds=0,1,0"], "--seeds 0,1,0: give one or more, each once"),
        (["--seeds=a"], "--seeds"),
        (["--devices=1,1"], "--devices 1,1: give the numbers of GPUs, each once, from 0"),
        (["--devices=0,3"], "--devices 3: there is no such GPU; PyTorch finds 1, counted from 0"),
        (["--model.control=dense"], "--overrides --model.control=dense: the study sets model.control itself"),
        (["--overrides", "max_steps"], "it must be an option with its value"),
        (["--model.routing=null"], "it routes nothing (model.routing is null)"),
        (["--model.routing.k=99"], "`routing.k` is 99"),
        (["--model.routing.k=["], "--model.routing.k [: it is no YAML"),
        (["--model.routing.k=a: b: c"], "--model.routing.k a: b: c: it is no YAML"),
        (["--model.routing={k: ["], "--model.routing {k: [: it is no YAML"),
        (["--controls=query_norm"], "model.control is query_norm, model.routing.target mlp and router"),
        (["--config=routed_attention_tinystories", "--controls=static_flops"], "heads have the controls static, dense"),
        (["--config=sae_tinystories"], "it trains sparse autoencoders"),
        (["--config=nothing"], "--config nothing: no such file; there are controlled_tinystories.yaml"),
    ],
)
def test_what_no_study_can_be_made_of_is_refused(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit) as stop:
        study(*args, out=tmp_path)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, message",
    [
        ("- a\n- b\n", "it is ['a', 'b']; it must be a mapping of options"),
        ("model: 3\n", "model is 3; it must be a mapping of options"),
        ("model: [1]\n", "model is [1]; it must be a mapping of options"),
        ("model: {routing: {k: [\n", "it is no YAML: while parsing a flow node"),
        ("", "it routes nothing"),
    ],
)
def test_a_config_that_is_no_mapping_is_refused(text, message, tmp_path, capsys):
    config = tmp_path / "x.yaml"
    config.write_text(text)
    with pytest.raises(SystemExit) as stop:
        study(f"--config={config}", out=tmp_path)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and f"--config {config}: {message}" in said and said.count("\n") == 1
