"""A routed model and what transformers makes of its export compute the same."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import slms
from slms.models.stock import check_model
from slms.models.stock_weights import write_stock
from tests.models.test_stock import SHAPE, routing

IDS = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(0))
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "leaving.md").read_text()


def read_by_vllm(name: str) -> set[str]:
    """The keys of config.json that the guide's table says vLLM reads of an architecture."""
    (cells,) = re.findall(rf"^\| `{name}\.py` \| ([^;|]*)", GUIDE, flags=re.M)
    return set(re.findall(r"`(\w+)`", cells))


def routed(config, **changes):
    torch.manual_seed(0)
    dense = hf.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in dense.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.1)
    return slms.route(dense, routing(**changes), IDS)


@pytest.mark.parametrize(
    ("name", "config", "changes"),
    [
        ("mixtral", hf.LlamaConfig(**SHAPE, tie_word_embeddings=True), {"k": 3}),
        ("mixtral", hf.MistralConfig(**SHAPE, sliding_window=7), {}),
        (
            "mixtral",
            hf.LlamaConfig(**SHAPE, rope_parameters=LLAMA3 | {"original_max_position_embeddings": 32}),
            {"n_pathways": 16, "k": 5},
        ),
        ("qwen2_moe", hf.LlamaConfig(**SHAPE), {"layers": [1]}),
        ("qwen2_moe", hf.LlamaConfig(**SHAPE), {"n_pathways": 16, "k": 5, "n_shared": 3}),
        ("qwen2_moe", hf.Qwen2Config(**SHAPE, tie_word_embeddings=True), {"every_n_layers": 2, "n_shared": 1, "k": 3}),
        ("qwen3_moe", hf.Qwen3Config(**SHAPE, head_dim=10), {"every_n_layers": 2}),
    ],
)
def test_the_export_computes_the_same(tmp_path, name, config, changes):
    model = routed(config, **changes)
    check_model(model, name)
    write_stock(model, name, tmp_path)
    again, found = hf.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again).__module__.startswith("transformers.models." + name)
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    with torch.no_grad():
        ours, theirs = model(IDS).logits, again.eval()(IDS).logits
        torch.testing.assert_close(theirs, ours, rtol=2e-4, atol=2e-4)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == config.rope_parameters["rope_theta"] and written["model_type"] == name
    keys = read_by_vllm(name)
    assert len(keys) > 4 and keys <= written.keys(), keys - written.keys()
    assert written["torch_dtype"] == written["dtype"] == "float32"


def test_checkpoints_have_the_names_that_engines_read(tmp_path):
    write_stock(routed(hf.LlamaConfig(**SHAPE)), "mixtral", tmp_path / "mixtral")
    mixtral = load_file(tmp_path / "mixtral" / "model.safetensors")
    block = "model.layers.0.block_sparse_moe"
    assert mixtral[f"{block}.gate.weight"].shape == (4, 24)
    assert {mixtral[f"{block}.experts.3.{w}.weight"].shape for w in ("w1", "w3")} == {(16, 24)}  # 12, filled up to 16
    assert mixtral[f"{block}.experts.3.w2.weight"].shape == (24, 16)
    write_stock(routed(hf.LlamaConfig(**SHAPE), layers=[1], n_shared=1), "qwen2_moe", tmp_path / "qwen2")
    qwen2 = load_file(tmp_path / "qwen2" / "model.safetensors")
    assert qwen2["model.layers.1.mlp.experts.2.down_proj.weight"].shape == (24, 16)
    assert qwen2["model.layers.1.mlp.shared_expert.up_proj.weight"].shape == (16, 24)
    assert not qwen2["model.layers.1.mlp.shared_expert_gate.weight"].any()
    assert qwen2["model.layers.0.mlp.gate_proj.weight"].shape == (48, 24)
    assert not qwen2["model.layers.2.self_attn.q_proj.bias"].any()
