"""The shapes of a model are calibrated once, kept on disk, and printed."""

import json

import pytest
import torch
from transformers import GPTNeoForCausalLM

import slms
from slms.kernels import costs, dispatch
from slms.measure.kernels import calibrate_kernels
from tests.tiny import tiny_config


@pytest.fixture
def routed(tmp_path, monkeypatch):
    monkeypatch.setenv("SLMS_CACHE", str(tmp_path))
    dispatch.forget_choices()
    config = tiny_config(40, num_layers=3, max_position_embeddings=32)
    routing = slms.RoutingConfig(n_pathways=8, k=2, partition="random", router_init="random")
    yield slms.route(GPTNeoForCausalLM(config), routing, torch.ones(2, 8, dtype=torch.int64))
    dispatch.forget_choices()


def test_once_and_from_the_cache(routed, tmp_path):
    (line,) = calibrate_kernels(routed, (1, 16), torch.float32, seconds=0.0)  # two layers, one shape
    assert line.startswith("routed MLPs 8×32, float32, inference, calibrated now: ")
    assert "(calibrated at 16 tokens, density 0.25)" in line
    ((_, rows),) = json.loads((tmp_path / "kernels.json").read_text()).items()
    assert {row["tokens"] for row in rows} == {1, 16} and {row["density"] for row in rows} == {0.25, 0.5, 1.0}
    before = (tmp_path / "kernels.json").read_bytes()
    (line,) = calibrate_kernels(routed, (16,), torch.float32, seconds=0.0)
    assert "already calibrated" in line and (tmp_path / "kernels.json").read_bytes() == before
    (line,) = calibrate_kernels(routed, (4,), torch.float32, training=True, seconds=0.0)
    assert "training, calibrated now" in line and len(costs.load_table()) == 2


def test_a_dense_model_has_nothing_to_calibrate(tmp_path, monkeypatch):
    monkeypatch.setenv("SLMS_CACHE", str(tmp_path))
    assert calibrate_kernels(torch.nn.Linear(2, 2), (1,), torch.float32) == []
    assert not list(tmp_path.iterdir())
