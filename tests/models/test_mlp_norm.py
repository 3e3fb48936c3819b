"""The affine map of a norm is what transformers' modules apply after they have normalised."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from slms.models.mlp_norm import mlp_norm
from tests.tiny import tiny_config

NORMS = {"gpt_neo": ("ln_2", True), "llama": ("post_attention_layernorm", False)}


@pytest.mark.parametrize("family", NORMS)
def test_is_what_the_norm_applies(family):
    torch.manual_seed(0)
    if family == "gpt_neo":
        config = tiny_config(13)
    else:
        from transformers import LlamaConfig

        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
        config = LlamaConfig(vocab_size=13, num_hidden_layers=2, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    name, centred = NORMS[family]
    norm = next(module for path, module in model.named_modules() if path.endswith(f"1.{name}"))
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
        x = torch.randn(5, model.config.hidden_size)
        weight, bias = mlp_norm(model, 1)
        normed = x - x.mean(1, keepdim=True) if centred else x
        normed = normed / normed.square().mean(1, keepdim=True).sqrt()
        torch.testing.assert_close(weight * normed + bias, norm(x), rtol=1e-3, atol=1e-3)


def test_another_norm_is_refused():
    model = AutoModelForCausalLM.from_config(tiny_config(13))
    block = model.transformer.h[0]
    block.ln_2 = torch.nn.Linear(model.config.hidden_size, model.config.hidden_size)
    with pytest.raises(ValueError, match="Linear is neither a LayerNorm nor an RMSNorm"):
        mlp_norm(model, 0)
    block.ln_2 = None
    with pytest.raises(ValueError, match="no norm before the MLP"):
        mlp_norm(model, 0)
