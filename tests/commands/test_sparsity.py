"""`eval.py sparsity` and the console script give the prototype's columns by its formulas, and the new ones."""

import csv
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as evaluation
import slms
from slms.commands import sparsity as command
from slms.measure.metrics import METRICS
from slms.measure.rows import COLUMNS as ROW_COLUMNS
from slms.models.activations import neuron_activations

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Once upon a time, there was a girl named Lily. She had a red ball."


def rows_of(directory):
    (path,) = (directory / "sparsity" / "stories-1m").glob("*/sparsity.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def published(outputs, threshold):
    """frac = mean(a > θ) and pr = (Σ max(a, 0))² / Σ max(a, 0)², over all elements of an MLP's outputs."""
    a = np.concatenate([np.asarray(y, dtype=np.float64).reshape(-1) for y in outputs])
    x = a.clip(min=0)
    return (a > threshold).mean(), x.sum() ** 2 / np.square(x).sum()


def outputs_of(prompts, name):
    """What the module called `name` puts out, one prompt at a time, as the earlier script hooks it."""
    model, tokenizer = slms.load_base("stories-1m")
    found = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, i, y: found.append(y.detach().numpy()))
    for prompt in prompts:
        model(**{"input_ids": tokenizer(prompt, return_tensors="pt").input_ids})
    handle.remove()
    return found


@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_the_legacy_columns_are_the_published_formulas(threshold, tmp_path, capsys):
    flags = ["--model", "stories-1m", "--prompt", PROMPT, "--num-docs", "3", "--threshold", str(threshold)]
    layers = ["--layers", "transformer.h.0.mlp", "transformer.h.6.mlp", f"--output-dir={tmp_path}", "--dtype=float32"]
    evaluation.main(["sparsity", *flags, *layers])
    rows = rows_of(tmp_path)
    assert list(rows[0])[:3] == ["layer", "frac", "pr"]
    (path,) = tmp_path.rglob("sparsity.json")
    stored = json.loads(path.read_text())["rows"]
    assert [*stored[0]] == ["task_id", *ROW_COLUMNS] and {row["metric"] for row in stored} <= METRICS.keys()
    of = {(row["place"], row["metric"], row["family"]): row["value"] for row in stored}
    assert len(of) == len(stored) and {row["task_id"] for row in stored} == {"prompt"}
    assert [row["layer"] for row in rows] == ["transformer.h.0.mlp", "transformer.h.6.mlp"]
    for row in rows:
        frac, pr = published(outputs_of([PROMPT] * 3, row["layer"]), threshold)
        assert float(row["frac"]) == pytest.approx(frac, abs=1e-9)
        assert float(row["pr"]) == pytest.approx(pr, rel=1e-4)
        assert of[f"L{row['layer'].split('.')[2]}.mlp", "kept", ""] == float(row["kept"])
        assert of[f"L{row['layer'].split('.')[2]}.mlp", "sparsity", "gini"] == float(row["gini"])
        assert 0 < float(row["kept"]) < 1 and float(row["gini_low"]) <= float(row["gini"]) <= float(row["gini_high"])
    whole = [of["model", "perplexity", family] for family in ("kept", "dense")]
    assert whole[0] <= 1.01 * whole[1] and of["model", "kept", ""] == pytest.approx(
        sum(float(row["kept"]) for row in rows) / 2
    )
    printed = capsys.readouterr().out
    assert all(f"{number:.3f}" in printed for number in whole)


def test_the_console_script_takes_the_sources_flags_by_task(tmp_path, monkeypatch, capsys):
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["sparsity"]
    assert script == f"{command.__name__}:main"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "sparsity",
            "--model",
            "stories-1m",
            "--probe-manifest",
            str(ROOT / "configs" / "probe_tasks.jsonl"),
            "--task-id",
            "toy_arithmetic",
            "--task-id",
            "stories_place",
            "--max-tokens=32",
            "--layers=3",
            "--tolerance=1e9",
            f"--output-dir={tmp_path}",
        ],
    )
    command.main()
    rows = rows_of(tmp_path)
    assert list(rows[0])[:4] == ["task_id", "layer", "frac", "pr"]
    assert [row["task_id"] for row in rows] == ["toy_arithmetic", "stories_place"]
    assert {row["layer"] for row in rows} == {"transformer.h.3.mlp"}


def test_kept_neurons_are_those_that_hold_the_perplexity():
    """Skipping the neurons below the thresholds, by hand, gives the perplexity and the shares reported."""
    from slms.data.probe_tasks import Item, Task
    from slms.data.prompts import prompt_blocks
    from slms.measure.sparsity import measure_sparsity
    from slms.models.weights import read_mlp

    model, tokenizer = slms.load_base("stories-1m")
    blocks = prompt_blocks([Task("t", "", "", (Item(PROMPT), Item("Tom and Ben went to the park.")))], tokenizer, 64)
    found = measure_sparsity(model, blocks, [2], tolerance=0.05).sufficient
    assert found.perplexity <= 1.05 * found.dense and 0 < found.kept[2] < 1
    tight = measure_sparsity(model, blocks, [2], tolerance=1e-6).sufficient
    assert tight.kept[2] >= found.kept[2]
    # The largest CETT that passes is within a bisection step of the first that fails.
    with neuron_activations(model, [2]) as a, torch.no_grad():
        model(torch.from_numpy(blocks.input_ids))
    real = torch.from_numpy(blocks.doc_ids >= 0).flatten()
    e = a[2][real].abs() * read_mlp(model.get_submodule("transformer.h.2.mlp")).W_out.norm(dim=1)
    share = found.kept[2]
    assert float((e >= e.flatten().quantile(1 - share)).double().mean()) == pytest.approx(share, abs=0.01)


def test_bad_input_is_refused_in_one_line(tmp_path, capsys):
    for flags, words in (
        (["--layers", "model.layers.10.mlp"], ["model.layers.10.mlp", "transformer.h."]),
        (["--task-id", "toy_arithmetics"], ["toy_arithmetics", "toy_arithmetic"]),
        (["--dtype", "int8"], ["--dtype", "int8"]),
        (["--num-docs", "-1"], ["--num_docs", "stories"]),
        (["--max-tokens", "4096"], ["--block_size", "4096", "2048"]),
        (["--probe-manifest", str(tmp_path / "none.jsonl")], ["none.jsonl"]),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluation.main(["sparsity", "--model", "stories-1m", f"--output-dir={tmp_path / 'a'}", *flags])
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and all(word in line for word in words), line
    assert not (tmp_path / "a").exists()
