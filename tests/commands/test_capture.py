"""`eval.py capture` from the command line."""

import json

import pytest
import torch

import eval as evaluation
import slms
from slms.models.activations import neuron_activations
from slms.models.base import BaseConfig, load_base
from slms.models.capture import read_capture
from slms.models.io import save_model


def test_a_task_is_captured_at_the_neurons(tmp_path, capsys):
    name = "transformer.h.3.mlp"
    args = [
        "capture",
        "--model",
        "stories-1m",
        "--task-id",
        "stories_place",
        "--layers",
        name,
        "--max-tokens",
        "64",
        f"--output-dir={tmp_path}",
    ]
    evaluation.main(args)
    (directory,) = (tmp_path / "capture" / "stories-1m").glob("stories_place-neurons-*")
    model, _ = slms.load_base("stories-1m")
    (shard,) = read_capture(directory, model)
    first = shard.tensors["doc_ids"] == 0
    with neuron_activations(model, [3]) as found, torch.no_grad():
        model(shard.tensors["token_ids"][first][None])
    assert torch.allclose(shard.tensors[name][first], found[3], atol=1e-5)
    assert shard.meta["task_ids"] == ["stories_place"] and str(directory) in capsys.readouterr().out
    written = {path.name: path.read_bytes() for path in directory.iterdir()}
    evaluation.main(args)
    assert written == {path.name: path.read_bytes() for path in directory.iterdir()}, "nothing is done twice"


def test_a_corpus_is_captured_to_its_length(tmp_path):
    evaluation.main(
        [
            "capture",
            "stories-1m",
            "--n-tokens=700",
            "--shard-tokens=300",
            "--site=residual",
            "--layers=7",
            "--dtype=float16",
            f"--output-dir={tmp_path}",
        ]
    )
    (directory,) = (tmp_path / "capture" / "stories-1m").iterdir()
    shards = list(read_capture(directory))
    assert sum(len(shard.tensors["token_ids"]) for shard in shards) == 700
    assert shards[0].tensors["transformer.h.7.mlp"].dtype == torch.float16
    assert json.loads((directory / "capture.json").read_text())["site"] == "residual"


def test_another_model_or_setting_has_another_directory(tmp_path):
    args = ["capture", str(tmp_path / "m"), "--n-tokens=200", f"--output-dir={tmp_path / 'a'}"]
    written = {}
    for width, flags in ((8, []), (16, []), (16, ["--shard-tokens=100"])):
        base = load_base(BaseConfig(name="stories-1m", init="random", d_model=width, n_layers=1, n_heads=2))
        save_model(base.model, base.tokenizer, tmp_path / "m")
        evaluation.main([*args, *flags])
        assert all(path.read_bytes() == content for path, content in written.items())
        written = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert len(list((tmp_path / "a" / "capture" / "m").iterdir())) == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--layers", "model.layers.3.mlp"], ["transformer.h.3.mlp"]),
        (["--site", "middle"], ["--site", "neurons"]),
        (["--n-tokens", "0"], ["--n_tokens", "0"]),
        (["--max-tokens", "9999"], ["--block_size", "9999", "2048"]),
        (["--task-id", "ioi_minimum"], ["ioi_minimal"]),
    ],
)
def test_bad_input_is_refused_in_one_line(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation.main(["capture", "--model", "stories-1m", f"--output-dir={tmp_path / 'a'}", *flags])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and all(word in line for word in words), line
    assert not (tmp_path / "a").exists()
