"""lm-eval agrees on routed and dynamic-k models with our own perplexity and accuracy; without it, there is one line."""

import csv
import json
import math
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import eval as evaluation
import slms
from slms.commands.harness import harness as command
from slms.data.probe_tasks import Item
from slms.data.stories import story
from slms.data.stories.probes import KINDS, probes
from slms.measure import harness
from slms.measure.passes import token_nll
from slms.measure.probes import margins
from slms.models.dynamic import masking
from slms.routing import RoutingConfig

needs_lm_eval = pytest.mark.skipif(not harness.installed(), reason=f"lm-eval is not installed: {harness.INSTALL}")
KIND = next(iter(KINDS))


@pytest.fixture(scope="module")
def task_directory(tmp_path_factory):
    """Two local tasks in lm-eval's format: texts to give a perplexity of, and probe items to choose an answer of."""
    place = tmp_path_factory.mktemp("tasks")
    texts = [story(0, index, "test").text for index in range(12)]
    rows = [{"prompt": p.prompt, "answer": p.answer, "foil": p.foil} for p in probes(KIND, 40, 0)]
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (place / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1.0}}
    stories = shared | {
        "task": "local_stories",
        "dataset_kwargs": {"data_files": {"test": str(place / "texts.jsonl")}},
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    }
    choice = shared | {
        "task": "local_probes",
        "dataset_kwargs": {"data_files": {"test": str(place / "items.jsonl")}},
        "output_type": "multiple_choice",
        "doc_to_text": "<|endoftext|>{{prompt}}",
        "target_delimiter": "",
        "doc_to_choice": "{{[answer, foil]}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    }
    for task in (stories, choice):
        (place / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return place, texts, [Item(row["prompt"], row["answer"], row["foil"]) for row in rows]


@pytest.fixture(scope="module")
def routed_directory(tmp_path_factory):
    model, tokenizer = slms.load_base("stories-1m")
    ids = torch.tensor([tokenizer(story(0, 1).text).input_ids[:128]])
    place = tmp_path_factory.mktemp("routed") / "model"
    slms.save_model(slms.route(model, RoutingConfig(n_pathways=8, k=4), ids), tokenizer, place)
    return place


def ours(model, tokenizer, texts, items) -> tuple[float, float]:
    """Perplexity per byte of each text after the separator of documents, and accuracy, by our own code."""
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
        with torch.no_grad():
            nats += token_nll(model, ids).double().sum().item()
    size = sum(len(text.encode()) for text in texts)
    return math.exp(nats / size), (margins(model, tokenizer, items).nats > 0).double().mean().item()


def scores(directory) -> dict[str, float]:
    with next(directory.rglob("harness.csv")).open() as file:
        return {f"{row['task']}/{row['metric']}": float(row["value"]) for row in csv.DictReader(file)}


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [[], ["--rule=cett", "--k=0.5", "--calibration_tokens=1024"]], ids=["routed", "dynamic"]
)
def test_lm_eval_gives_our_own_numbers(flags, task_directory, routed_directory, tmp_path, capsys, monkeypatch):
    from slms.commands import harness as command

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    used = []
    monkeypatch.setattr(command, "score", lambda net, *rest: used.append(net) or harness.score(net, *rest))
    tasks, texts, items = task_directory
    model = "stories-1m" if flags else str(routed_directory)
    evaluation.main(
        [
            "harness",
            model,
            "--tasks",
            "local_stories",
            "local_probes",
            f"--include_path={tasks}",
            f"--output_dir={tmp_path}",
            *flags,
        ]
    )
    net, tokenizer = used[0], slms.load_base("stories-1m").tokenizer
    with masking(net, prompt=False):
        perplexity, accuracy = ours(net, tokenizer, texts, items)
    found = scores(tmp_path)
    assert abs(found["local_stories/byte_perplexity"] - perplexity) < 5e-5
    assert abs(found["local_probes/acc"] - accuracy) < 5e-5 and 0 < accuracy < 1
    out = capsys.readouterr().out
    assert f"{perplexity:.4f}" in out and "local_probes" in out
    if flags:
        dense = ours(slms.load_base("stories-1m").model, tokenizer, texts, items)[0]
        assert abs(perplexity - dense) > 1e-4  # the rule does leave something out


@needs_lm_eval
def test_a_task_that_is_not_there_is_one_line():
    with pytest.raises(ValueError, match=r"--tasks no_such_task: lm-eval has no such task; the nearest are \w+"):
        harness.score(None, None, ["no_such_task"])


def refused(args, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        evaluation.main(args)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit=0"], "--limit 0: it must be at least 1"),
        (["--rule=cett"], "--rule and --density belong together"),
        (["--rule=cett", "--k=2"], "--density is 2.0; it must be above 0 and at most 1"),
    ],
)
def test_flags_are_checked_first(flags, message, capsys):
    assert message in refused(["harness", "stories-1m", "--tasks", "x", *flags], capsys)


def test_without_lm_eval_one_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr("slms.commands.harness.installed", lambda: False)
    assert harness.INSTALL in refused(["harness", "stories-1m", "--tasks", "x"], capsys)
    assert harness.INSTALL in command.__doc__.splitlines()[0] and " -e " not in harness.INSTALL
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (needed,) = project["optional-dependencies"]["harness"]
    assert needed.partition(">")[0] == harness.INSTALL.split("'")[1]
    monkeypatch.setattr(harness, "installed", lambda: False)
    with pytest.raises(ValueError, match="needs the package lm-eval"):
        harness.score(None, None, ["x"])


def test_task_files_that_name_code_are_refused_before_they_are_read(tmp_path):
    (tmp_path / "fine.yaml").write_text("task: a\n")
    harness.check_tasks(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "evil.yml").write_text("task: b\nprocess_docs: !function evil.run\n")
    with pytest.raises(ValueError, match=r"evil\.yml: `!function` runs Python code"):
        harness.check_tasks(tmp_path)
    with pytest.raises(ValueError, match="no such directory"):
        harness.check_tasks(tmp_path / "absent")
