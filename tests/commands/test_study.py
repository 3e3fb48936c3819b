"""`eval.py study` trains what is missing, goes on where it stopped, and refuses in one line."""

import csv
import json
import re
import sys

import pytest

import eval as evaluation
import slms.commands.study as command
import slms.commands.study_jobs as jobs_of

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
    (directory,) = (tmp_path / "study" / "routed_tinystories").iterdir()
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


def test_one_run_at_a_time_trains_on_each_device(tmp_path, monkeypatch, capsys):
    """Two at once, each of which sees one GPU; after a failure those under way are stopped and no other begins."""
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
    jobs = [command.Job(arm, seed) for arm, seed in (("dense", 0), ("static", 0), ("dense", 1), ("dense", 2))]
    with pytest.raises(ValueError, match=r"static-s0 ended with code 1 \(no memory\)"):
        command.train_at_once(tmp_path, jobs, tmp_path / "x.yaml", [], [3, 5])
    seen = {path.stem: path.read_text().split("GPU ")[1][0] for path in tmp_path.glob("*.log")}
    assert set(seen) == {"dense-s0", "static-s0", "dense-s1"} and set(seen.values()) == {"3", "5"}
    assert command.finished_run(tmp_path, jobs[0]) and not command.finished_run(tmp_path, jobs[2])
    assert "dense-s0: trained, 1 of 4" in capsys.readouterr().out


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
        (["--model.control=dense"], "--overrides --model.control=dense: the study sets model.control itself"),
        (["--overrides", "max_steps"], "it must be an option with its value"),
        (["--model.routing=null"], "it routes nothing (model.routing is null)"),
        (["--model.routing.k=99"], "`routing.k` is 99"),
        (["--controls=query_norm"], "model.control is query_norm, model.routing.target mlp and router"),
        (["--config=routed_attention_tinystories", "--controls=static_flops"], "heads have the controls static, dense"),
        (["--config=sae_tinystories"], "it trains sparse autoencoders"),
        (["--config=nothing"], "--config nothing: no such file; there are controlled_tinystories.yaml"),
    ],
)
def test_what_no_study_can_be_made_of_is_refused(args, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        study(*args, out=tmp_path)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
