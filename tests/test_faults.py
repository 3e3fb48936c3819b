"""Injected faults, as happen overnight: the run stops with the reason or continues, and loses nothing that was written.

Here are faults of a whole run. Damaged checkpoints are in tests/lit/test_checkpoint.py, a lost process of several in
tests/test_distributed.py, a corpus that changes in tests/data/test_text.py.
"""

import errno
import os
import random
import resource
import signal
import sys
from pathlib import Path

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

import train
from slms.files import PART, sole_owner
from slms.lit.checkpoint import damage, newest_checkpoint, step_of
from slms.lit.language_model import LanguageModel
from slms.report.metrics_csv import read_rows
from slms.report.results import read_results
from tests.processes import Run, directory, flags

TRIALS = int(os.environ.get("SLMS_KILL_TRIALS", "2"))


@pytest.fixture(autouse=True)
def _command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])


def refused(args, capsys) -> str:
    """The one line that a run ends with."""
    with pytest.raises(SystemExit) as stop:
        train.main(args)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    return line


def training(run: Path) -> dict:
    """Every number that training and validation logged."""
    return {row[:1] + row[2:5]: row.value for row in read_rows(run / "metrics.csv")}


def left_over(run: Path) -> list[Path]:
    return list(run.rglob(f"{PART}*"))


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
def test_sigkill_at_a_random_step_loses_nothing(folder, one_run, trial):
    """Killed without warning, possibly in the middle of a write, and resumed: bit for bit the undisturbed run."""
    chance = random.Random(trial)
    when = f"{chance.randrange(6)}:{chance.expovariate(10):.4f}"
    killed = Run(folder / f"killed{trial}.log", flags(folder, f"killed{trial}"), kill={0: when})
    (code,) = killed.join()
    assert code in (-signal.SIGKILL, 0), killed.said()
    run = directory(folder, f"killed{trial}")
    checkpoints = list((run / "checkpoints").glob("[!.]*.ckpt"))
    assert all(damage(checkpoint) is None for checkpoint in checkpoints)
    if code != 0:
        more = [f"--ckpt_path={run}"] if checkpoints else []  # killed before the first one: it starts again
        again = Run(folder / f"killed{trial}.log", flags(folder, f"killed{trial}", *more))
        assert again.join() == [0], again.said()
        run = max((folder / f"killed{trial}").iterdir())
    assert training(run) == training(one_run)
    assert read_results(run).losses == read_results(one_run).losses and not left_over(run)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_and_moved_twice_a_run_goes_on_at_its_last_step(folder, one_run, trial):
    """Kill, move, resume, kill, move, resume: the newest checkpoint counts, and the end is the undisturbed run's."""
    chance, name = random.Random(1000 + trial), f"moved{trial}"
    run, more, named = None, [], set()
    for part, steps in enumerate(((2, 4), (3, 5), None)):
        kill = steps and {0: f"{chance.randint(*steps)}:{chance.expovariate(10):.4f}"}
        process = Run(folder / f"{name}.log", flags(folder, name, *more), kill=kill)
        (code,) = process.join()
        assert code == 0 if kill is None else code in (-signal.SIGKILL, 0), process.said()
        before, run = run, max((folder / name).iterdir()) if run is None else run
        if list((run / "checkpoints").glob("[!.]*.ckpt")) and kill is not None:
            run = run.rename(folder / f"{name}-{part}")
            more = [f"--ckpt_path={run}"]
            named.add(newest_checkpoint(run).name)  # what a run resumes from, it does not remove
        elif before is None and kill is not None:
            run = None  # killed before the first checkpoint: it starts again
    assert training(run) == training(one_run) and read_results(run).losses == read_results(one_run).losses
    assert step_of(run / "checkpoints" / "last.ckpt") == 6 and not left_over(run)
    kept = {path.name for path in run.glob("checkpoints/epoch=*")}
    assert not list(run.glob("checkpoints/last-*")) and len(kept) >= 1 and len(kept - named) <= 1, kept


def test_resumed_from_behind_the_end_of_an_epoch(folder):
    """A checkpoint due at the epoch's last step is written one step later; the corpus goes on where it stopped."""
    epochs = ["--data.epoch_tokens=768", "--trainer.max_epochs=2", "--checkpoint.every_n_train_steps=3"]
    whole = Run(folder / "epochs.log", flags(folder, "epochs", *epochs))
    killed = Run(folder / "epoch.log", flags(folder, "epoch", *epochs), kill={0: "5:0.0"})
    assert whole.join() == [0] and killed.join() == [-signal.SIGKILL], killed.said()
    run = directory(folder, "epoch")
    assert step_of(run / "checkpoints" / "last.ckpt") == 4
    again = Run(folder / "epoch.log", flags(folder, "epoch", *epochs, f"--ckpt_path={run}"))
    assert again.join() == [0], again.said()
    run = max((folder / "epoch").iterdir())
    assert training(run) == training(directory(folder, "epochs"))


@pytest.fixture
def from_step(monkeypatch):
    """Call something when a step begins."""
    original = LanguageModel.on_train_batch_start

    def set_up(step, action):
        def begin(self, batch, batch_idx):
            if self.global_step == step:
                action()
            return original(self, batch, batch_idx)

        monkeypatch.setattr(LanguageModel, "on_train_batch_start", begin)

    return set_up


def test_a_disk_that_fills_while_a_checkpoint_is_written(folder, from_step, capsys):
    """No file may grow beyond 400 kB from step 3 on, and a checkpoint has more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    from_step(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard)))
    try:
        line = refused(flags(folder, "full"), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run = directory(folder, "full")
    last = run / "checkpoints" / "last.ckpt"
    assert "checkpoints" in line and "File too large" in line
    assert damage(last) is None and step_of(last) == 2 and not left_over(run)


def test_tensorboard_s_writer_fails_and_the_run_goes_on(folder, one_run, monkeypatch, caplog):
    original, written = RecordWriter.write, []

    def write(self, data):
        written.append(data)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, data)

    monkeypatch.setattr(RecordWriter, "write", write)
    monkeypatch.setattr("threading.excepthook", lambda caught: None)  # the writer's own thread reports it as well
    train.main(flags(folder, "unwritten"))
    warnings = [record.message for record in caplog.records if "TensorBoard" in record.message]
    assert len(warnings) == 1 and "No space left on device" in warnings[0] and "metrics.csv" in warnings[0]
    assert training(directory(folder, "unwritten")) == training(one_run)


def test_two_runs_in_one_directory(folder, one_run, capsys):
    before = sorted(one_run.rglob("*"))
    with sole_owner(one_run):
        line = refused(flags(folder, "one", f"--ckpt_path={one_run}"), capsys)
    assert "another process is writing this run" in line and str(one_run) in line
    assert sorted(one_run.rglob("*")) == before


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a directory that not even root can write")
def test_a_read_only_output_directory(folder, capsys):
    line = refused(flags(Path("/sys/kernel"), "run", f"--model.base.name={folder / 'base'}"), capsys)
    assert "/sys/kernel" in line and ("not permitted" in line or "denied" in line)


def test_a_loss_that_explodes(folder, from_step, monkeypatch, capsys):
    """From step 3 on the loss is a thousand times what it was."""
    original, factor = LanguageModel.training_step, [1.0]
    monkeypatch.setattr(LanguageModel, "training_step", lambda *args: factor[0] * original(*args))
    from_step(3, lambda: factor.__setitem__(0, 1000.0))
    line = refused(flags(folder, "exploded"), capsys)
    run = directory(folder, "exploded")
    assert "at step 3" in line and "nan_guard.max_rise" in line and "Blocks of the batch: " in line
    assert line.endswith(f"The last good checkpoint: {run / 'checkpoints' / 'last.ckpt'}")
    assert step_of(run / "checkpoints" / "last.ckpt") == 2 and (run / "stopped.json").is_file()
