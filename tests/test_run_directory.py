"""A run changes no byte outside its directory, whatever is refused and wherever the checkpoint lies."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import train
from slms.callbacks import ResultsWriter
from slms.files import sole_owner
from slms.lit.checkpoint import damage, find_checkpoint, step_of
from slms.lit.language_model import LanguageModel
from slms.lit.run_directory import RunDirectory, run_of
from slms.report.results import read_results
from tests.processes import flags

RUN = "runs/mine/20250101-000000"
LAST = f"{RUN}/checkpoints/last.ckpt"
PLACES = {
    "a folder of the project": "ckpts/best.ckpt",
    "the working directory": "best.ckpt",
    "deep, absolute": "{project}/a/b/c/checkpoints/best.ckpt",
    "a path with ..": f"{RUN}/checkpoints/../../../../ckpts/best.ckpt",
    "a link to a run's": "link.ckpt",
    "a folder linked to a run": "linked/checkpoints/last.ckpt",
    "a folder linked to a run's checkpoints": "all/last.ckpt",
    "a run without config.yaml": "bare/checkpoints/last.ckpt",
    "a run without config.yaml, by its directory": "bare",
    "beside another program's config.yaml": "foreign/checkpoints/last.ckpt",
    "a run's, with a metric in its name": f"{RUN}/checkpoints/epoch=0-val/loss=0.895.ckpt",
    "a run's last": LAST,
    "a run's directory": RUN,
    "a run's earlier one": f"{RUN}/checkpoints/early.ckpt",
}
OWN = {place for place in PLACES if place.startswith(("a run's", "a folder linked to a run"))} - {
    "a run's earlier one",
    "a folder linked to a run's checkpoints",
}
"""Places that are the run's: it goes on where it was."""


@pytest.fixture
def project(tmp_path, one_run, folder, monkeypatch):
    """A user's folder to work in: own files and models everywhere, and checkpoints in every place."""
    last = one_run / "checkpoints" / "last.ckpt"
    place = tmp_path / "project"
    shutil.copytree(one_run, place / RUN)
    (place / LAST).rename(place / f"{RUN}/checkpoints/only.ckpt")
    for name in (
        "ckpts/best",
        "best",
        "a/b/c/checkpoints/best",
        "bare/checkpoints/last",
        "foreign/checkpoints/last",
        f"{RUN}/checkpoints/last",
        f"{RUN}/checkpoints/epoch=0-val/loss=0.895",
    ):
        (place / f"{name}.ckpt").parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(last, place / f"{name}.ckpt")
    for early in (place / RUN / "checkpoints").glob("epoch=0-step=*"):
        early.rename(early.with_name("early.ckpt"))
    (place / "link.ckpt").symlink_to(place / LAST)
    (place / "linked").symlink_to(place / RUN)
    (place / "all").symlink_to(place / RUN / "checkpoints")
    given = "ckpts a a/b a/b/c a/b/c/checkpoints bare bare/checkpoints foreign thesis runs runs/mine".split()
    for name in ("", *given, RUN, f"{RUN}/checkpoints"):
        (place / name).mkdir(exist_ok=True)
        (place / name / "notes.txt").write_text(f"of {name}")
        (place / name / ".part-mine").write_text("begins like an unfinished file")
        if name != RUN:
            shutil.copytree(folder / "base", place / name / "model")
    (place / "foreign" / "config.yaml").write_text("model: {name: other}\ndata: x\n")
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return place


def everything(place: Path) -> dict[str, str | bytes | None]:
    """Relative path → content, where a link leads, or None of a directory."""
    return {
        str(path.relative_to(place)): os.readlink(path)
        if path.is_symlink()
        else None
        if path.is_dir()
        else path.read_bytes()
        for path in place.rglob("*")
    }


def resume(folder: Path, checkpoint: str, *more: str) -> None:
    train.main(flags(folder, "new", "--output_dir=runs", f"--ckpt_path={checkpoint}", *more))


def fails(self, *args, **kwargs):
    raise RuntimeError("cannot be drawn")


REFUSALS = {
    "a mistyped corpus": ["--data.corpus.name=missing.txt"],
    "blocks longer than the context": ["--data.block_size=128"],
    "an impossible k": ["--model.routing.k=9"],
    "more pathways than neurons": ["--model.routing.n_pathways=65"],
    "another order of the text": ["--data.seed=7"],
    "another batch": ["--data.batch_size=4"],
    "another name of files": ["--checkpoint.filename=../../best"],
    "another place of checkpoints": ["--checkpoint.dirpath=ckpts"],
    "no such checkpoint": [],
    "a damaged checkpoint": [],
    "a checkpoint of something else": [],
    "results that cannot be written": [],
    "Ctrl-C while it starts": [],
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_no_refusal_changes_a_byte(refusal, project, folder, capsys, monkeypatch):
    """Each refusal at every place."""
    if refusal == "a damaged checkpoint":
        for file in project.rglob("*.ckpt"):
            file.write_bytes(file.read_bytes()[:-1000])
    elif refusal == "a checkpoint of something else":
        for file in project.rglob("*.ckpt"):
            torch.save({"state_dict": {}}, file)
    elif refusal == "results that cannot be written":
        monkeypatch.setattr("slms.callbacks.results.monosemanticity_figure", fails)
    elif refusal == "Ctrl-C while it starts":

        def interrupt(self, stage):
            raise KeyboardInterrupt

        monkeypatch.setattr(LanguageModel, "setup", interrupt)
    before = everything(project)
    for place, path in PLACES.items():
        checkpoint = path.format(project=project)
        if refusal == "no such checkpoint":
            checkpoint = f"{checkpoint}/nowhere.ckpt"
        with pytest.raises(SystemExit) as stop:
            resume(folder, checkpoint, *REFUSALS[refusal])
        assert stop.value.code == (1 if refusal.startswith("Ctrl-C") else 2), place
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(lines) == (0 if refusal.startswith("Ctrl-C") else 1), (place, lines)
        after = everything(project)
        assert after.keys() == before.keys(), place
        assert after == before, place


@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_goes_on_touches_nothing_but_its_own(place, project, folder, capsys):
    """In the run's own directory where the checkpoint lies in it and is its newest; else in a new one, and says so."""
    before = everything(project)
    resume(folder, PLACES[place].format(project=project), "--trainer.max_epochs=2", "--trainer.max_steps=7")
    after = everything(project)
    said = "going on in a new run directory" in capsys.readouterr().out
    made = {path for path in after.keys() - before.keys() if path.startswith("runs/new")}
    if place in OWN:
        assert not made and not said
        for path in after.keys() - before.keys():
            assert path.startswith(RUN), path
        changed = {path for path in before if before[path] != after.get(path)}
        assert all(path.startswith(RUN) and Path(path).name not in ("notes.txt",) for path in changed), changed
        assert step_of(project / LAST) == 7
    else:
        assert said and {path: after[path] for path in before} == before
        assert after.keys() - before.keys() == made
        (run,) = (path for path in (project / "runs" / "new").iterdir())
        assert step_of(run / "checkpoints" / "last.ckpt") == 7 and (run / "model" / "config.json").is_file()


def test_which_run_a_checkpoint_belongs_to(project):
    for place, path in PLACES.items():
        found = run_of(find_checkpoint(Path(path.format(project=project))))
        assert (found is not None) == (place in OWN or place == "a run's earlier one"), place


def test_a_run_stopped_before_its_results_writes_them(project, folder, one_run, monkeypatch, capsys):
    """The last checkpoint is on disk before the results: they fail, and the resumed run has nothing else to do."""
    (project / RUN / "llm_routing_results.json").unlink()
    monkeypatch.setattr(ResultsWriter, "on_train_end", fails)
    with pytest.raises(RuntimeError, match="cannot be drawn"):
        resume(folder, f"{RUN}/checkpoints/early.ckpt")
    (run,) = (project / "runs" / "new").iterdir()
    assert step_of(run / "checkpoints" / "last.ckpt") == 6 and damage(run / "checkpoints" / "last.ckpt") is None
    monkeypatch.undo()
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    resume(folder, str(run))
    assert "no step is left after step 6" in capsys.readouterr().out
    assert read_results(run).losses == read_results(one_run).losses


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (["--trainer.max_epochs=1"], ["--trainer.max_epochs=2"]),
        (["--trainer.max_epochs=-1", "--trainer.max_steps=2"], ["--trainer.max_epochs=-1", "--trainer.max_steps=4"]),
        (["--trainer.max_epochs=-1", "--trainer.max_steps=3"], ["--trainer.max_epochs=-1", "--trainer.max_steps=4"]),
    ],
    ids=["epochs", "steps to an epoch's end", "steps into an epoch"],
)
def test_a_longer_run_goes_on_in_the_text(first, then, folder, tmp_path, monkeypatch):
    """The end of a run is no beginning: whole or in two parts, the same blocks are read."""
    read: list[list[int]] = []
    original = LanguageModel.on_train_batch_start

    def begin(self, batch, batch_idx):
        read.append(batch["block_ids"].tolist())
        return original(self, batch, batch_idx)

    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(LanguageModel, "on_train_batch_start", begin)
    small = ["--data.epoch_tokens=512", "--results.save_model=false", f"--output_dir={tmp_path}"]
    train.main(flags(folder, "whole", *small, *then))
    whole = list(read)
    read.clear()
    train.main(flags(folder, "parts", *small, *first))
    (run,) = (tmp_path / "parts").iterdir()
    train.main(flags(folder, "parts", *small, *then, f"--ckpt_path={run}"))
    assert read == whole and len(whole) == 4


def test_what_the_end_cannot_write_is_refused_at_the_start(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr("slms.callbacks.results.save_model", fails)
    with pytest.raises(SystemExit):
        train.main(flags(folder, "x", f"--output_dir={tmp_path / 'runs'}"))
    assert "what the run's end writes fails: RuntimeError: cannot be drawn" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["model", "llm_routing_results.json", "metrics.csv"])
def test_what_is_in_the_way_of_the_end_is_refused_at_the_start(name, project, folder, capsys):
    """The user has a file where the run would write a directory, or the other way round."""
    there = project / RUN / name
    (shutil.rmtree if there.is_dir() else Path.unlink)(there)
    there.mkdir() if there.suffix else there.write_text("mine")
    (there / "mine.txt" if there.is_dir() else there).write_text("mine")
    before = everything(project)
    with pytest.raises(SystemExit) as stop:
        resume(folder, RUN, "--trainer.max_epochs=2")
    assert stop.value.code == 2 and str(there) in capsys.readouterr().err
    assert everything(project) == before


def test_a_resumed_run_keeps_what_you_put_beside_its_model(project, folder):
    mine = project / RUN / "model" / "model-q8.gguf"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    resume(folder, RUN, "--trainer.max_epochs=2", "--trainer.max_steps=7")
    assert mine.read_text() == "mine" and (mine.parent / "model.safetensors").is_file()


def test_two_runs_of_one_second_have_two_directories(tmp_path):
    runs = [RunDirectory(tmp_path / "a" / "20250101-000000", is_new=True) for _ in range(3)]
    with runs[0].hold(), runs[1].hold():
        assert [run.path.name for run in runs[:2]] == ["20250101-000000", "20250101-000000-2"]
        runs[0].start()
        with pytest.raises(ValueError, match="stop"), runs[2].hold():
            assert runs[2].path.name == "20250101-000000-3"
            raise ValueError("stop")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["20250101-000000"]


def test_what_others_put_into_a_new_directory_meanwhile_stays(tmp_path):
    run = RunDirectory(tmp_path / "a" / "b", is_new=True)
    with pytest.raises(ValueError, match="refused"), run.hold():
        (run.path / "events.out.tfevents.1").touch()
        (run.path / "thesis.tex").write_text("mine")
        raise ValueError("refused")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["thesis.tex"]


def test_a_run_held_by_another_process_is_left_alone(project, folder, capsys):
    before = everything(project)
    with sole_owner(project / RUN), pytest.raises(SystemExit):
        resume(folder, RUN)
    assert "another process is writing this run" in capsys.readouterr().err
    assert everything(project) == before
