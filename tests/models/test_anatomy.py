"""Anatomy: where MLPs are and what they are made of, against each architecture's own forward pass."""

import pytest
import torch
import transformers as hf
from torch import nn

import slms
from slms.kernels import ACTIVATIONS
from slms.models.anatomy import family_of, find_mlps, list_layers, replace_mlp
from slms.models.base import init_base
from slms.models.speedups import FusedGELU, fuse_gelu
from slms.models.weights import read_mlp

ACTIVATION = {"gpt_neo": "gelu_new", "gpt2": "gelu_new", "gpt_neox": "gelu"} | {
    "llama": "silu",
    "mistral": "silu",
    "qwen2": "silu",
    "qwen3": "silu",
    "gemma": "gelu_pytorch_tanh",
    "gemma2": "gelu_pytorch_tanh",
    "gemma3_text": "gelu_pytorch_tanh",
}


def test_list_layers_names_width_and_activation(tiny, family):
    model = tiny(family)
    layers = list_layers(model)
    assert [layer.index for layer in layers] == [0, 1, 2]
    for layer in layers:
        assert (layer.d_model, layer.d_ff) == (24, 37)
        assert layer.activation == ACTIVATION[family]
        assert layer.gated == (family not in ("gpt_neo", "gpt2", "gpt_neox"))
        assert model.get_submodule(layer.name) is find_mlps(model)[layer.index]


def test_neuron_major_weights_reproduce_the_mlp(tiny, family):
    """y = b_out + Σ_i h_i W_out[i] over neurons, h_i = act(up_i), or act(gate_i) · up_i."""
    mlp = find_mlps(tiny(family))[1]
    w = read_mlp(mlp)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(5, 24)
    zero = torch.zeros(37)
    for i in range(37):
        up = x @ w.W_in[i] + (zero if w.b_in is None else w.b_in)[i]
        if w.W_gate is None:
            h = ACTIVATIONS[w.activation](up)
        else:
            h = ACTIVATIONS[w.activation](x @ w.W_gate[i] + (zero if w.b_gate is None else w.b_gate)[i]) * up
        y += h[:, None] * w.W_out[i]
    if w.b_out is not None:
        y += w.b_out
    torch.testing.assert_close(mlp(x), y, atol=1e-5, rtol=1e-5)


def test_a_model_without_known_mlps_lists_the_adapters():
    config = hf.OPTConfig(vocab_size=11, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1)
    model = hf.OPTForCausalLM(config)
    with pytest.raises(ValueError, match="model type `opt` has no known MLP; the families are gpt_neo, gpt2, gpt_neox"):
        family_of(model)
    with pytest.raises(ValueError, match="the families are"):
        list_layers(model)
    with pytest.raises(ValueError, match="Linear is no known MLP"):
        read_mlp(nn.Linear(2, 2))


def test_an_activation_that_kernels_lack_is_refused(tiny):
    mlp = find_mlps(tiny("llama"))[0]
    mlp.act_fn = nn.Mish()
    with pytest.raises(ValueError, match="activation Mish is not supported; it must be one of gelu"):
        read_mlp(mlp)


def test_list_layers_of_a_name_reads_no_weights():
    """The embedded base's directory serves even before it holds weights: shapes come from its configuration."""
    layers = slms.list_layers("stories-1m")
    assert len(layers) == 8
    assert layers[3] == (3, "transformer.h.3.mlp", 64, 256, "gelu_new", False)


def test_fused_gelu_equals_gelu_new_and_keeps_its_name(tiny, tokens):
    model, ids = tiny("gpt2"), tokens(2, 9)
    before = model(ids).logits
    fuse_gelu(model)
    assert all(isinstance(mlp.act, FusedGELU) for mlp in find_mlps(model).values())
    torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-5)
    assert list_layers(model)[0].activation == "gelu_new"


def test_replace_mlp_puts_the_module_where_the_model_uses_it(tiny, tokens):
    model = init_base("stories-1m")
    new = nn.Sequential()  # y = x
    replace_mlp(model, 5, new)
    assert find_mlps(model)[5] is new
