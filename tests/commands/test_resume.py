"""A measurement that was killed half-way continues where it stopped, and does not compute finished parts again."""

import contextlib

import pytest
from transformers import GPTNeoModel

import eval as evaluation
import slms.measure.journal
from slms.measure import evidence
from slms.models.base import BaseConfig, load_base
from slms.models.io import save_model
from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.export import Provenance, save

TEXT = ["--n_tokens=512", "--block_size=32", "--batch_size=2"]
DYNAMICK = "--rule griffin oracle --density 0.25,0.5,0.75 --seconds=0 --budget=uniform --calibration_tokens=256".split()
# Command → its options, and the forward passes of its longest part: of an unfinished part some may be repeated. 0: of
# none, so it is killed three times.
COMMANDS = {
    "perplexity": (TEXT, 1),
    "sparsity": (["--num_docs=4", "--batch_size=1", "--layers=0", "--tolerance=0.05"], 4),
    "specialization": ([*TEXT, "--task_id=toy_arithmetic", "--layers=1", "--n_nulls=2"], 0),
    "probes": (["--task_id", "ioi_minimal,toy_arithmetic", "--batch_size=2"], 40),
    "dynamick": ([*TEXT, *DYNAMICK], 16),
    # what it was at, and the pass that reads the inputs of the ablated layer again
    "ablation": ([*TEXT, "--layers=1", "--families=token_class"], 16),
    "sae": ([*TEXT, "--control_tokens=2048"], 60),
}


class Killed(BaseException):
    """As Ctrl-C."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a model m and a coder c of it."""
    base = load_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=3, n_heads=2))
    save_model(base.model, base.tokenizer, (place := tmp_path_factory.mktemp("models")) / "m")
    coder = build_coder(CoderConfig(kind="topk", d_sae=24, k=4), 8)
    save(
        coder,
        place / "c",
        Provenance(str(place / "m"), "blocks.1.hook_resid_post", context_size=32, dataset_path="stories"),
    )
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_finished_is_computed_again(command, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slms.measure.journal, "SHARE", 1e9)  # passes are kept after every batch
    options, longest = COMMANDS[command]
    forward, calls, stop = GPTNeoModel.forward, [0], [None]

    def counted(self, *args, **kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if ids.numel() == 1:  # how the model's head is used is tried on one token
            return forward(self, *args, **kwargs)
        if calls[0] == stop[0]:
            raise Killed
        calls[0] += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(GPTNeoModel, "forward", counted)

    def run(out, kill_at=None):
        calls[0], stop[0] = 0, kill_at
        with contextlib.suppress(Killed):
            subject = str(place / ("c" if command == "sae" else "m"))
            evaluation.main([command, subject, *options, f"--output_dir={tmp_path / out}"])
        return calls[0]

    def results(out):
        found = (tmp_path / out / command).rglob("*.csv") if command != "perplexity" else []
        return {path.name: path.read_text() for path in found}

    whole = run("whole")
    stops = (whole // 2,) if longest else (whole // 5, whole // 4, whole // 3)
    done = [run("killed", stop) for stop in stops]
    assert done == list(stops)
    rest = run("killed")
    assert sum(done) + rest <= whole + longest and rest < whole, (whole, done, rest)
    assert results("killed") == results("whole")
    assert run("killed") == 0, "a finished measurement is told again without the model"


def test_scores_are_not_computed_again(place, tmp_path, monkeypatch):
    """Killed while the graph of its second place is made, `specialization` has kept the scores of both."""
    calls = {"semantic_coherence": 0, "modularity": 0}

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            if name == "modularity" and calls[name] == 2:
                raise Killed
            return function(*args, **kwargs)

        return call

    for name in calls:
        monkeypatch.setattr(evidence, name, counted(name, getattr(evidence, name)))
    words = [str(place / "m"), *TEXT, "--task_id=toy_arithmetic", "--layers=0,1", "--n_nulls=2", "--random=false"]
    for _ in range(2):
        with contextlib.suppress(Killed):
            evaluation.main(["specialization", *words, f"--output_dir={tmp_path}"])
    assert calls == {"semantic_coherence": 4, "modularity": 3}, "two places, on text and on prompts; one call was cut"
    assert len(list(tmp_path.rglob("units.csv"))) == 1
