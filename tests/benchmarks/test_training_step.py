"""The comparison of training steps runs on a tiny model and obeys its flags."""

import pytest
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks import training_step
from slms.routing import RoutingConfig


@pytest.fixture
def tiny(monkeypatch):
    config = GPTNeoXConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    monkeypatch.setattr(training_step, "dense_model", lambda name: GPTNeoXForCausalLM(config))


def test_prints_the_ratio(tiny, capsys):
    training_step.main(["--models", "pythia-70m", "--batch_size", "2", "--block_size", "8", "--seconds", "0"])
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("pythia-70m: dense ") and float(line.split()[-1]) > 0


def test_weights_stay_as_they_are(tiny):
    model = training_step.dense_model("pythia-70m")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    times = training_step.compare_steps(model, RoutingConfig(n_pathways=4, k=2), 2, 8, 0.0)
    assert set(times) == {"dense", "routed"}
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())


def test_bad_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        training_step.main(["--models", "gpt-5"])
    assert stop.value.code == 2 and "--models" in capsys.readouterr().err
