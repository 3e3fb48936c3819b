"""Models as GGUF files: what is stored is what the model holds, in the names and the order of llama.cpp."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

import slms
from slms.models.gguf_tokenizer import PRE, _warn_once, vocabulary
from slms.models.to_gguf import check, paired, tensors, write_gguf

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 258}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
WIDTHS = {"intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, attention_bias=True),
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2_moe": Qwen2MoeConfig(**SHAPE, **MOE, shared_expert_intermediate_size=32),
    "qwen3": Qwen3Config(**SHAPE),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, **MOE, norm_topk_prob=True),
}


def build(name: str):
    torch.manual_seed(0)
    model = Auto.from_config(CONFIGS[name]).eval()
    for parameter in model.parameters():  # norms and biases too, so that a swap of two shows
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def byte_level(pre: str = "gpt-2") -> PreTrainedTokenizerFast:
    tokens = [*sorted(ByteLevel.alphabet()), "th"]
    bpe = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, [("t", "h")]))
    bpe.pre_tokenizer = PRE[pre]
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", bos_token="<|end|>")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("mixtral", "llama")])
def test_transformers_reads_back_the_same_model(name, tmp_path):
    model, tokenizer = build(name), byte_level("smollm")
    file = write_gguf(model, tokenizer, tmp_path / "tiny.gguf")
    again, words = slms.load_base(file)
    ids = torch.arange(24).reshape(1, 24)
    with torch.no_grad():
        assert (again(ids).logits - model(ids).logits).abs().max() < 1e-4
    text = "the 123 cats"
    assert words(text).input_ids == tokenizer(text).input_ids
    assert words.convert_ids_to_tokens(words(text).input_ids)[1:5] == ["e", "Ġ", "1", "2"], "digits are single"


@pytest.mark.parametrize("name", list(CONFIGS))
def test_q8_0_is_within_half_a_step_and_leaves_vectors_and_routers_alone(name, tmp_path):
    model = build(name)
    file = write_gguf(model, byte_level(), tmp_path / "m.gguf", "q8_0")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, weight in tensors(model, check(model.config)):
        exact = weight.ndim == 1 or "ffn_gate_inp" in name
        assert stored[name].tensor_type.name == ("F32" if exact else "Q8_0"), name
        read = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
        assert abs(read - weight).max() <= (0 if exact else abs(weight).max() / 127), name


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("mixtral", "llama")])
def test_q8_0_fills_mlps_and_experts_with_neurons_that_change_nothing(name, tmp_path, monkeypatch):
    """Read back from fp32 in the shapes of Q8_0: rounding would hide a neuron that counts."""
    narrow = type(CONFIGS[name])(**CONFIGS[name].to_dict() | dict.fromkeys(WIDTHS & CONFIGS[name].to_dict().keys(), 20))
    monkeypatch.setitem(CONFIGS, name, narrow)
    model, ids = build(name), torch.arange(24).reshape(1, 24)
    kinds = gguf.GGMLQuantizationType
    monkeypatch.setattr(gguf, "GGMLQuantizationType", SimpleNamespace(F32=kinds.F32, Q8_0=kinds.F32))
    file = write_gguf(model, byte_level("smollm"), tmp_path / "tiny.gguf", "q8_0")
    wide = slms.load_base(file).model
    assert {getattr(wide.config, width) for width in WIDTHS if hasattr(wide.config, width)} == {32}
    with torch.no_grad():
        assert (wide(ids).logits - model(ids).logits).abs().max() < 1e-4


def test_q8_0_fills_the_experts_of_a_mixture_and_the_biases_of_an_mlp():
    narrow = {"intermediate_size": 20}
    mixture = Auto.from_config(MixtralConfig(**SHAPE | narrow, num_local_experts=4, num_experts_per_tok=2))
    dense = Auto.from_config(LlamaConfig(**SHAPE | narrow, mlp_bias=True))
    for model, of in ((mixture, "_exps"), (dense, "")):
        plain, wide = (dict(tensors(model, check(model.config), type)) for type in ("f32", "q8_0"))
        for part, kind, axis in (("gate", "weight", -2), ("up", "bias", -1), ("down", "weight", -1)):
            name = f"blk.0.ffn_{part}{of}.{kind}"
            if name in plain:
                rows, more = np.split(wide[name], [20], axis)
                assert np.array_equal(rows, plain[name]) and more.shape[axis] == 12 and not more.any(), name
        changed = {name.split(".")[2] for name in plain if plain[name].shape != wide[name].shape}
        assert changed == {f"ffn_{part}{of}" for part in ("gate", "up", "down")}


def test_experts_are_stacked_and_rows_of_q_and_k_are_paired():
    model = build("mixtral")
    found = dict(tensors(model, check(model.config)))
    experts = model.model.layers[1].mlp.experts
    gate, up = experts.gate_up_proj[3].detach().split(64)
    assert torch.equal(torch.from_numpy(found["blk.1.ffn_gate_exps.weight"][3]), gate)
    assert torch.equal(torch.from_numpy(found["blk.1.ffn_up_exps.weight"][3]), up)
    assert torch.equal(torch.from_numpy(found["blk.1.ffn_down_exps.weight"][3]), experts.down_proj[3])
    assert paired(torch.arange(16), heads=2).tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


def test_many_experts_of_a_token_come_with_biases_of_zeros():
    """llama.cpp has room in its graph for 8 objects a tensor, and ends the process where that is too little."""
    for used, biased in ((16, False), (17, True)):
        model = Auto.from_config(MixtralConfig(**SHAPE, num_local_experts=40, num_experts_per_tok=used))
        found = {name: value for name, value in tensors(model, check(model.config)) if name.endswith(".bias")}
        assert not any(value.any() for value in found.values())
        sizes = {name: len(value) for name, value in found.items() if name.startswith("blk.0.")}
        wanted = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32}
        assert sizes == ({f"blk.0.{name}.bias": size for name, size in wanted.items()} if biased else {})


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (LlamaConfig(**SHAPE | {"hidden_size": 40}), "q8_0", r"d_model is 40, .*multiples of 32 only, F32 \(export's"),
        (Qwen3Config(**SHAPE | {"num_attention_heads": 6}), "q8_0", "6 heads × 8 is 48, and Q8_0"),
        (Qwen2MoeConfig(**SHAPE, **MOE, norm_topk_prob=True), "f32", "`norm_topk_prob` is True; llama.cpp's qwen2moe"),
        (Qwen3MoeConfig(**SHAPE, **MOE, norm_topk_prob=False), "f32", "`norm_topk_prob` is False"),
        (Qwen2MoeConfig(**SHAPE, **MOE, mlp_only_layers=[0]), "f32", "some layers are dense"),
        (LlamaConfig(**SHAPE, hidden_act="gelu"), "f32", "the activation is gelu"),
        (LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "factor": 2.0}), "f32", "ask for 'linear'"),
        (MixtralConfig(**SHAPE, num_local_experts=48, num_experts_per_tok=33), "f32", "room for at most 32"),
        (GPT2Config(), "f32", "model type `gpt2` has no GGUF form"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(config, kind, message):
    with pytest.raises(ValueError, match=message):
        check(config, kind)


def test_a_lack_of_byte_tokens_is_told_once(caplog):
    bpe = Tokenizer(BPE({"▁": 0, "a": 1, "<0x0A>": 2}, []))
    bpe.pre_tokenizer = Metaspace()
    _warn_once.cache_clear()
    for _ in range(4):
        assert vocabulary(PreTrainedTokenizerFast(tokenizer_object=bpe), 3).model == "llama"
    assert [record.getMessage()[:37] for record in caplog.records] == ["the tokenizer has 1 of 256 byte token"]


def test_a_tokenizer_without_a_gguf_form_is_refused_and_leaves_nothing(tmp_path):
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})))
    with pytest.raises(ValueError, match="only BPE can be written"):
        write_gguf(build("llama"), words, tmp_path / "m.gguf")
    odd = byte_level()
    odd.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    with pytest.raises(ValueError, match=r"none of llama.cpp's gpt-2"):
        write_gguf(build("llama"), odd, tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="--type q4: it must be one of f32, q8_0"):
        write_gguf(build("llama"), byte_level(), tmp_path / "m.gguf", "q4")
    assert not list(tmp_path.iterdir())
