"""`eval.py probes` writes its files and table, and refuses bad input."""

import csv
import json

import pytest

import eval as evaluation
from slms.measure.rows import COLUMNS
from slms.models.base import BaseConfig, load_base

ITEMS = [
    {"prompt": "The dog", "answer": " is", "foil": " are"},
    {"prompt": "Tom and", "answer": " Lily", "foil": " Sam"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A tiny random model with the embedded tokenizer."""
    directory = tmp_path_factory.mktemp("tiny")
    net, tokenizer = load_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=1, n_heads=2))
    net.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture
def manifest(tmp_path):
    rows = [
        {"task_id": "a", "domain": "d", "source": {"type": "items", "items": ITEMS}},
        {"task_id": "prose", "source": {"type": "prompt", "text": "A text."}},
        {"task_id": "stories_ioi", "source": {"type": "stories", "kind": "ioi", "n": 3}},
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def run(model, manifest, tmp_path, *flags):
    args = [
        "probes",
        "--model",
        model,
        "--probe-manifest",
        str(manifest),
        "--output-dir",
        str(tmp_path / "out"),
        *flags,
    ]
    evaluation.main(args)
    return next(path.parent for path in (tmp_path / "out" / "probes").rglob("probes.csv"))


def test_files_and_table(model, manifest, tmp_path, capsys):
    directory = run(model, manifest, tmp_path)
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((directory / "probes.csv").open()))
    items = list(csv.DictReader((directory / "items.csv").open()))
    assert tuple(rows[0]) == COLUMNS and {row["place"] for row in rows} == {"model"}
    of = {(row["metric"], row["family"]): row for row in rows}
    for task, n in (("a", "2"), ("stories_ioi", "3")):
        accuracy, margin, blind = (of[metric, task] for metric in ("accuracy", "margin", "blind"))
        mine, alone = (
            [float(item[column]) for item in items if item["task_id"] == task] for column in ("margin", "blind_margin")
        )
        assert float(accuracy["value"]) == pytest.approx(sum(m > 0 for m in mine) / len(mine))
        assert float(blind["value"]) == pytest.approx(sum(m > 0 for m in alone) / len(alone))
        assert float(margin["value"]) == pytest.approx(sum(mine) / len(mine), abs=1e-6)
        assert float(accuracy["low"]) <= float(accuracy["value"]) <= float(accuracy["high"])
        assert (accuracy["n"], accuracy["null_mean"], margin["null_mean"]) == (n, "0.5", "")
        assert 0 <= float(accuracy["control"]) <= 1 and float(of["left_out", task]["value"]) == 0
    stored = json.loads((directory / "probes.json").read_text())
    assert stored["domains"]["a"] == "d"
    assert [(row["metric"], row["family"]) for row in stored["rows"]] == list(of)
    assert (directory / "probes.png").stat().st_size > 5000
    assert "stories_ioi" in printed and "not scored: prose" in printed


@pytest.mark.parametrize(
    ("flags", "line", "told"),
    [
        (["--task-id", "storis_ioi"], None, ["--task_id storis_ioi", "stories_ioi"]),
        (["--task-id", "prose"], None, ["--task_id prose", "no answers"]),
        (["--batch_size=0"], None, ["--batch_size", "0"]),
        ([], "{nonsense", ["tasks.jsonl:4", "not JSON"]),
        ([], "", ["tasks.jsonl", "empty"]),
    ],
)
def test_bad_input_is_one_line_and_costs_no_earlier_result(flags, line, told, model, manifest, tmp_path, capsys):
    directory = tmp_path / "out" / "probes" / "-".join(model.split("/")[-2:])
    directory.mkdir(parents=True)
    (directory / "probes.csv").write_text("earlier")
    if line is not None:
        manifest.write_text(manifest.read_text() + "\n" + line if line else "")
    with pytest.raises(SystemExit) as stop:
        run(model, manifest, tmp_path, *flags)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error and all(word in error for word in told), error
    assert [(path.name, path.read_text()) for path in directory.iterdir()] == [("probes.csv", "earlier")]
