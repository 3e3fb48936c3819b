"""`eval.py suite` measures, resumes, and refuses in one line."""

import csv
import json
import shutil

import pytest
import torch

import eval as evaluation
import slms.commands.suite as command
from slms.models.base import BaseConfig, load_base
from tests.processes import Run, flags


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

    def stopped(journal, name, *rest, **text):
        if name == names[2] and len(measured) < 3:
            raise OSError("the hub cannot be reached")
        measured.append(name)
        return measure(journal, name, *rest, **text)

    monkeypatch.setattr(command, "_measure", stopped)
    with pytest.raises(SystemExit) as stop:
        suite("--models", *names, out=tmp_path)
    assert stop.value.code == 2 and "the hub cannot be reached" in capsys.readouterr().err
    assert not list(tmp_path.rglob("suite.csv"))

    def counted(journal, name, *rest, **text):
        measured.append(name)
        return measure(journal, name, *rest, **text)

    monkeypatch.setattr(command, "_measure", counted)
    suite("--models", *names, out=tmp_path)
    assert measured == names  # the first two were not measured again
    printed = capsys.readouterr().out
    (directory,) = (tmp_path / "suite" / "models").iterdir()
    rows = list(csv.DictReader((directory / "suite.csv").open()))
    found = {(row["metric"], row["family"]) for row in rows}
    assert (
        len(rows) == 12
        and {row["run"] for row in rows} == set("abc")
        and found == {("sparsity", "gini"), ("si", "pos"), ("si", "semantic"), ("q", "")}
    )
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)
    kept = json.loads((directory / "suite.json").read_text())
    assert [verdict["metric"] for verdict in kept["verdicts"]] == ["AS", "SI pos", "SI semantic"]
    assert (directory / "suite.png").stat().st_size > 5000
    assert "verdict" in printed and "a decade" in printed


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


def finished_run(place, width: int, seed: int) -> None:
    """The files of a finished run by which the suite finds it."""
    (place / "model").mkdir(parents=True)
    (place / "model" / "config.json").write_text(json.dumps({"hidden_size": width}))
    (place / "config.yaml").write_text(f"model: {{base: {{seed: {seed}}}}}\ndata: {{seed: {seed}}}\n")
    (place / "checkpoints").mkdir()
    for tokens in (499_712, 999_424, 1_499_136, 1_998_848, 3_997_696):
        torch.save({"callbacks": {"ResultsWriter": {"tokens": tokens}}}, place / "checkpoints" / f"epoch={tokens}.ckpt")


def test_the_stories_suite_takes_the_last_finished_run_of_each_width_and_seed(tmp_path):
    runs = tmp_path / command.STORIES
    for seed in (*command.SEEDS, 7):
        for width in command.WIDTHS:
            for when in "12" if (width, seed) == (16, 0) else "2":
                finished_run(runs / f"{width}-{seed}-{when}", width, seed)
    (runs / "9-unfinished").mkdir()
    found = command.stories_runs(str(tmp_path))
    assert len(found) == len(set(found)) == 6 * 3 * 4 and all("-2/checkpoints" in path for path in found)
    assert not any("1499136" in path or "-7-" in path for path in found)
    next((runs / "48-1-2" / "checkpoints").glob("*999424*")).unlink()
    asked = r".*--seed_everything=1"
    with pytest.raises(ValueError, match=r"48-1-2 has no checkpoint at 1,000,000 tokens; " + asked):
        command.stories_runs(str(tmp_path))
    whole = '{"hidden_size": 48}'
    unusable = [
        (whole, None),
        (whole, "[1]"),
        (whole, "model: [1]"),
        (whole, "model: {base: {seed: []}}\ndata: {seed: 1}"),
    ]
    unusable += [
        (text, "model: {base: {seed: 1}}\ndata: {seed: 1}") for text in ("{}", "[1]", "{", '{"hidden_size": []}')
    ]
    for i, (shape, config) in enumerate(unusable):
        (runs / f"9-{i}" / "model").mkdir(parents=True)
        (runs / f"9-{i}" / "model" / "config.json").write_text(shape)
        if config is not None:
            (runs / f"9-{i}" / "config.yaml").write_text(config)
    (runs / "48-1-2" / "config.yaml").write_text("model: {base: {seed: 1}}\ndata: {seed: 0}\n")
    with pytest.raises(ValueError, match="no finished run of width 48, seed 1; " + asked):
        command.stories_runs(str(tmp_path))


def test_copies_are_refused(runs, tmp_path, capsys):
    shutil.copytree(runs / "a", tmp_path / "again")
    with pytest.raises(SystemExit) as stop:
        suite("--models", str(runs / "a"), str(tmp_path / "again"), out=tmp_path / "out")
    assert stop.value.code == 2 and "are the same model" in capsys.readouterr().err


def test_checkpoints_of_a_run_share_its_random_weights(folder, tmp_path, capsys, monkeypatch):
    run = Run(folder / "sizes.log", flags(folder, "sizes", "--model.routing=null", "--checkpoint.save_top_k=-1"))
    assert run.join() == [0], run.said()
    (place,) = (folder / "sizes").iterdir()
    names = [str(path) for path in sorted((place / "checkpoints").glob("*step=[24].ckpt"))]
    twins, twin = [], command.random_twin
    monkeypatch.setattr(command, "random_twin", lambda *args: twins.append(args[1]) or twin(*args))
    suite("--models", *names, out=tmp_path)
    assert len(names) == 2 and len(twins) == 1
    (file,) = tmp_path.rglob("suite.csv")
    rows = list(csv.DictReader(file.open()))
    assert {row["run"] for row in rows} == {str(place)} and len({row["nats"] for row in rows}) == 2
    assert len({row["control"] for row in rows if row["metric"] == "q"}) == 1
