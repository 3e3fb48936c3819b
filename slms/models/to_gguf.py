"""Writes a dense or mixture-of-experts model with its tokenizer as one GGUF file, which llama.cpp runs.

With the package `gguf`, for every family alike: llama.cpp's converter is a script of its source tree that no package
installs, and it knows a tokenizer by the hash of what it makes of one text, so that a home-made one is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slms.files import replacing
from slms.models.gguf_tokenizer import vocabulary

TYPES = ("f32", "q8_0")
BLOCK = 32
"""weights of a row that share one scale in Q8_0"""


class Architecture(NamedTuple):
    """How llama.cpp names a family, and whether it turns neighbouring rows of q and k together."""

    name: str
    pairs_rows: bool
    norm_topk: bool | None = None
    """whether llama.cpp scales the chosen experts' shares to sum to 1; None for dense models"""


ARCHITECTURES = {
    "llama": Architecture("llama", True),
    "mistral": Architecture("llama", True),
    "mixtral": Architecture("llama", True, norm_topk=True),
    "qwen2": Architecture("qwen2", False),
    "qwen2_moe": Architecture("qwen2moe", False, norm_topk=False),
    "qwen3": Architecture("qwen3", False),
    "qwen3_moe": Architecture("qwen3moe", False, norm_topk=True),
}

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
_BIASED = ("attn_q", "attn_k", "attn_v", "attn_output")
FEW_EXPERTS, MOST_EXPERTS = 16, 32
"""Of a token. On 30 layers 16 of 48 run and 20 do not; with biases 32 do and 40 do not."""
_ROWS = tuple(f"ffn_{part}{of}" for part in ("gate", "up") for of in ("", "_exps", "_shexp"))
_COLUMNS = tuple(f"ffn_down{of}" for of in ("", "_exps", "_shexp"))
"""The tensors of an MLP or expert: its neurons are rows of the first and columns of the second."""
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: str | Path, type: str = "f32", name: str = ""
) -> Path:
    """Write a model and its tokenizer to a GGUF file, which is replaced as a whole or left unchanged.

    type: `f32`, or `q8_0`: one byte a weight and a scale for every 32; vectors and routers stay fp32. In Q8_0 neurons
    of zeros, which change nothing, fill every MLP and expert up to a multiple of 32.
    Raises ValueError for a missing package, or for what GGUF or llama.cpp cannot hold: a family, tokenizer or shape.
    """
    if type not in TYPES:
        raise ValueError(f"--type {type}: it must be one of {', '.join(TYPES)}")
    try:
        import gguf
    except ImportError:
        raise ValueError("to write GGUF takes the package gguf: pip install gguf") from None
    arch = check(model.config, type)
    words = vocabulary(tokenizer, model.config.vocab_size)
    with replacing(file) as part:
        writer = gguf.GGUFWriter(part, arch.name)
        writer.add_name(name or Path(file).stem)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if type == "q8_0" else gguf.LlamaFileType.ALL_F32)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, model.config, arch, type)
        _add_vocabulary(writer, words, tokenizer)
        for tensor, weight in tensors(model, arch, type):
            matrix = weight.ndim > 1 and "ffn_gate_inp" not in tensor
            kind = gguf.GGMLQuantizationType.Q8_0 if type == "q8_0" and matrix else gguf.GGMLQuantizationType.F32
            data = weight if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(weight, kind)
            writer.add_tensor(tensor, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(file)


def check(config: Any, type: str = "f32") -> Architecture:
    """Return how llama.cpp names a configuration's family; raise ValueError if it would not compute the same."""
    arch = ARCHITECTURES.get(config.model_type)
    if arch is None:
        raise ValueError(
            f"model type `{config.model_type}` has no GGUF form here; {', '.join(ARCHITECTURES)} have one."
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"`rope_parameters` ask for {rope['rope_type']!r}; only `default` can be written as GGUF.")
    if config.hidden_act != "silu":
        raise ValueError(f"the activation is {config.hidden_act}; llama.cpp's {arch.name} has silu.")
    if arch.norm_topk is not None and getattr(config, "norm_topk_prob", True) != arch.norm_topk:
        raise ValueError(f"`norm_topk_prob` is {config.norm_topk_prob}; llama.cpp's {arch.name} has {arch.norm_topk}.")
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        raise ValueError(
            f"some layers are dense; llama.cpp's {arch.name} routes every layer: --model.routing.every_n_layers=1"
        )
    if (used := getattr(config, "num_experts_per_tok", None) or 0) > MOST_EXPERTS:
        raise ValueError(f"`num_experts_per_tok` is {used}; llama.cpp's graph has room for at most {MOST_EXPERTS}.")
    if type == "q8_0":
        heads = config.num_attention_heads
        rows = {"d_model": config.hidden_size, f"{heads} heads × {_head(config)}": heads * _head(config)}
        for row, size in rows.items():
            if size % BLOCK:
                raise ValueError(
                    f"{row} is {size}, and Q8_0 stores {BLOCK} weights of a row together: it takes multiples of "
                    f"{BLOCK} only, F32 (export's --type f32) any"
                )
    return arch


def tensors(model: PreTrainedModel, arch: Architecture, type: str = "f32") -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and fp32 values of every tensor of a file of this type."""
    for name, values in _tensors(model, arch):
        part, kind = name.split(".")[-2:]
        axis = {"weight": -2, "bias": -1}[kind] if part in _ROWS else -1
        if part in _ROWS or (part in _COLUMNS and kind == "weight"):
            room = [(0, 0)] * values.ndim
            room[axis] = (0, _filled(values.shape[axis], type) - values.shape[axis])
            values = np.pad(values, room) if room[axis][1] else values
        yield name, values


def _filled(neurons: int, type: str) -> int:
    """How many neurons an MLP or expert of so many has in a file: in Q8_0, neurons of zeros fill the last block."""
    return neurons if type == "f32" else -(-neurons // BLOCK) * BLOCK


def _tensors(model: PreTrainedModel, arch: Architecture) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and fp32 values of every tensor in the model's own shape."""
    config, state = model.config, model.state_dict()
    head_of = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in state.items():
        stem, _, kind = name.rpartition(".")
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if stem in _TOP:
            yield f"{_TOP[stem]}.{kind}", _values(weight)
            continue
        _, _, layer, part = name.split(".", 3)
        prefix, part = f"blk.{layer}.", part.removesuffix(f".{kind}")
        if part == "mlp.experts":
            for expert, value in _experts(kind, weight):
                yield f"{prefix}{expert}.weight", value
            continue
        if part not in _NAMES:
            raise ValueError(f"{name} has no place in llama.cpp's {arch.name}.")
        ours = _NAMES[part]
        if arch.pairs_rows and ours in head_of:
            weight = paired(weight, head_of[ours])
        yield f"{prefix}{ours}.{kind}", _values(weight[0] if ours == "ffn_gate_inp_shexp" else weight)
        if arch.name == "llama" and ours in _BIASED and many(config) and f"{stem}.bias" not in state:
            yield f"{prefix}{ours}.bias", np.zeros(len(weight), np.float32)


def many(config: Any) -> bool:
    """Whether more experts run for a token than llama.cpp's graph has room for, unless the file has more tensors.

    The graph's room is 8 objects a tensor (`llama_context::graph_max_nodes`), and each expert of a token takes two. So
    biases of zeros, which llama.cpp's llama may have in attention, make room for more.
    """
    return (getattr(config, "num_experts_per_tok", None) or 0) > FEW_EXPERTS


def _experts(kind: str, weight: Tensor) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the stacked experts [experts, out, in] of transformers' `gate_up_proj` and `down_proj`."""
    if kind == "gate_up_proj":
        gate, up = weight.chunk(2, dim=1)
        yield from (("ffn_gate_exps", _values(gate)), ("ffn_up_exps", _values(up)))
    else:
        yield "ffn_down_exps", _values(weight)


def paired(rows: Tensor, heads: int) -> Tensor:
    """Order the rows [heads · size, …] of q or k as llama.cpp's llama turns them: row i beside row i + size/2."""
    size = rows.shape[0] // heads
    return rows.reshape(heads, 2, size // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _values(weight: Tensor) -> np.ndarray:
    return weight.detach().to("cpu", torch.float32).contiguous().numpy()


def _head(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_shape(writer: Any, config: Any, arch: Architecture, type: str) -> None:
    head = _head(config)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(min(config.max_position_embeddings, window or config.max_position_embeddings))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(_filled(config.intermediate_size, type))
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope.get("rope_theta", 10_000.0))
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config.vocab_size)
    if arch.norm_topk is None:
        return
    writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if arch.name != "llama":
        writer.add_expert_feed_forward_length(_filled(config.moe_intermediate_size, type))
    if arch.name == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(_filled(config.shared_expert_intermediate_size, type))


def _add_vocabulary(writer: Any, words: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
    writer.add_add_space_prefix(words.space_prefix)
    writer.add_add_bos_token(words.add_bos)
    for kind in ("bos", "eos", "unk", "pad"):
        if (token := getattr(tokenizer, f"{kind}_token_id")) is not None:
            getattr(writer, f"add_{kind}_token_id")(token)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
