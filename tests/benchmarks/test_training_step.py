"""The comparison of training steps runs on tiny models and obeys its flags."""

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks import training_step
from slms.routing import RoutingConfig

SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def tiny(monkeypatch):
    config = GPTNeoXConfig(**SMALL, intermediate_size=32, max_position_embeddings=16)
    monkeypatch.setattr(training_step, "dense_model", lambda name: GPTNeoXForCausalLM(config))


def test_prints_the_ratio_of_every_type(tiny, capsys):
    flags = "--models pythia-70m --batch_size 2 --block_size 8 --seconds 0 --dtypes float32 bfloat16".split()
    training_step.main(flags)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "pythia-70m: routed runs 0.250, 0.250 through W_out"
    for i, dtype in enumerate(("float32", "bfloat16")):
        assert lines[2 + 2 * i].startswith(f"pythia-70m {dtype}: dense ")
        assert lines[3 + 2 * i].startswith(f"pythia-70m {dtype}: routed / dense ")
        assert float(lines[3 + 2 * i].split()[-1]) > 0


def test_static_control(tiny, capsys):
    training_step.main("--models pythia-70m --batch_size 2 --block_size 8 --seconds 0 --static 0.5 1".split())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1].rsplit(maxsplit=1)[0] for line in lines[-3:]] == [
        f" {name} / dense" for name in ("routed", "static 50%", "static 100%")
    ]


def test_smollm2_is_routed_as_its_configs_say():
    found = training_step.routings("smollm2-135m")
    assert list(found) == list(training_step.SMOLLM2) and found["routed_smollm2_stock"].stock
    costs = [(1 + config.k / 1536 + config.k_out / 1536) / 3 for config in list(found.values())[:2]]
    assert costs == pytest.approx([0.67, 0.5], abs=4e-3)


def test_thresholds_choose_the_share_and_weights_stay_as_they_are():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=64, max_position_embeddings=64))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = RoutingConfig(router="gate", n_pathways=64, k=38, k_out=26, every_n_layers=1, rule="controlled")
    times, found = training_step.compare_steps(model, {"routed": config}, 2, 64, 0.0)
    assert set(times["float32"]) == {"dense", "routed"}
    assert found["routed"] == pytest.approx((38 / 64, 26 / 64), abs=0.01)
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name in before if ".mlp." in name
    }


def test_bad_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        training_step.main(["--models", "gpt-5"])
    assert stop.value.code == 2 and "--models" in capsys.readouterr().err
