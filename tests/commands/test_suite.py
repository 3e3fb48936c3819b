"""`eval.py suite` measures, resumes, and refuses in one line."""

import csv
import json

import pytest

import eval as evaluation
import slms.commands.suite as command
from slms.models.base import BaseConfig, load_base


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three tiny models; the first two as finished runs of the stories suite."""
    root = tmp_path_factory.mktemp("suite")
    for width, name in ((8, "a"), (12, "b"), (16, "c")):
        net, tokenizer = load_base(BaseConfig(name="stories-1m", init="random", d_model=width, n_layers=1, n_heads=2))
        net.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def suite(*args: str, out) -> None:
    evaluation.main(["suite", *args, "--n_tokens=2048", "--block_size=64", "--n_nulls=2", f"--output_dir={out}"])


def test_measures_and_goes_on_where_it_stopped(runs, tmp_path, capsys, monkeypatch):
    names = [str(runs / name) for name in "abc"]
    measure, measured = command._measure, []

    def stopped(name, *rest, **text):
        if name == names[2] and len(measured) < 3:
            raise OSError("the hub cannot be reached")
        measured.append(name)
        return measure(name, *rest, **text)

    monkeypatch.setattr(command, "_measure", stopped)
    with pytest.raises(SystemExit) as stop:
        suite("--models", *names, out=tmp_path)
    assert stop.value.code == 2 and "the hub cannot be reached" in capsys.readouterr().err
    assert not list(tmp_path.rglob("suite.csv"))
    monkeypatch.setattr(
        command, "_measure", lambda name, *rest, **text: measured.append(name) or measure(name, *rest, **text)
    )
    suite("--models", *names, out=tmp_path)
    assert measured == names  # the first two were not measured again
    printed = capsys.readouterr().out
    (directory,) = (tmp_path / "suite" / "models").iterdir()
    rows = list(csv.DictReader((directory / "suite.csv").open()))
    found = {(row["metric"], row["family"]) for row in rows}
    assert len(rows) == 12 and found == {("sparsity", "gini"), ("si", "pos"), ("si", "semantic"), ("q", "")}
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)
    kept = json.loads((directory / "suite.json").read_text())
    assert [verdict["metric"] for verdict in kept["verdicts"]] == ["AS", "SI pos", "SI semantic", "Q"]
    assert (directory / "suite.png").stat().st_size > 5000
    assert "verdict" in printed and "slope per decade" in printed


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], ["--models", "--suite"]),
        (["--models", "x", "--suite=pythia"], ["either"]),
        (["--suite=llama"], ["llama", "pythia"]),
        (["--suite=stories", "--runs=nowhere"], ["--runs nowhere", "dense_stories_scale.yaml", "d_model=16"]),
        (["--models", "./nowhere"], ["nowhere"]),
        (["--models", "stories-1m", "stories-1m"], ["each once"]),
    ],
)
def test_bad_input_is_one_line(flags, told, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        suite(*flags, out=tmp_path)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error and all(word in error for word in told), error
    assert not any(tmp_path.iterdir())


def test_the_stories_suite_takes_the_last_finished_run_of_each_width(tmp_path):
    for width in (*command.WIDTHS, 32):
        for when in "12":
            model = tmp_path / command.STORIES / f"{width}-{when}" / "model"
            model.mkdir(parents=True)
            (model / "config.json").write_text(json.dumps({"hidden_size": width}))
    (tmp_path / command.STORIES / "9-unfinished").mkdir()
    wanted = [str(tmp_path / command.STORIES / f"{width}-2") for width in command.WIDTHS]
    assert command.stories_runs(str(tmp_path)) == wanted
