"""Logit effects against finite differences of the model's own head, for both kinds of norm."""

import pytest
import torch
from transformers import GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

from slms.measure.logit_effects import final_norm, logit_effects, mean_jacobian, written
from slms.models.sites import Site, read_sites
from tests.tiny import tiny_config


def gpt_neo():
    return GPTNeoForCausalLM(tiny_config(23, num_layers=1, max_position_embeddings=16))


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=23,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=16,
            pad_token_id=0,
        )
    )


@pytest.fixture(params=[gpt_neo, llama], ids=["layer norm", "rms norm"])
def model(request):
    torch.manual_seed(0)
    model = request.param().double().eval()
    torch.nn.init.uniform_(final_norm(model).weight, 0.5, 2.0)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    return model


def test_effects_are_the_slope_of_the_logits(model):
    residuals = read_sites(model, torch.arange(12)[None], [Site("residual", 0)])["residual.0"]
    directions = torch.randn(3, 8, dtype=torch.float64)
    found = logit_effects(model, directions, residuals, k=4)
    step, near = 1e-3, {"rtol": 1e-3, "atol": 1e-3}  # transformers computes this RMS norm in float32 whatever the input
    head, norm = model.get_output_embeddings(), final_norm(model)
    for i, direction in enumerate(directions):
        slope = (head(norm(residuals + step * direction)) - head(norm(residuals - step * direction))).mean(0) / (
            2 * step
        )
        slope = slope - slope.mean()
        torch.testing.assert_close(found.up[i], slope.topk(4).values, **near)
        torch.testing.assert_close(found.down[i], slope.topk(4, largest=False).values, **near)
        torch.testing.assert_close(slope[found.promoted[i]], found.up[i], **near)
        torch.testing.assert_close(slope[found.suppressed[i]], found.down[i], **near)


def test_the_radial_direction_of_a_norm_does_nothing():
    norm, x = torch.nn.LayerNorm(6, eps=0.0, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)
    J = mean_jacobian(norm, x)
    assert (J @ x[0]).abs().max() < 1e-12 < J.abs().max()


def test_what_a_site_writes(model):
    W = torch.randn(5, 12 if isinstance(model, LlamaForCausalLM) else 32, dtype=torch.float64)
    down = (
        model.model.layers[0].mlp.down_proj
        if isinstance(model, LlamaForCausalLM)
        else model.transformer.h[0].mlp.c_proj
    )
    wanted = W @ down.weight.T
    torch.testing.assert_close(written(model, Site("neurons", 0), W), wanted)
    assert written(model, Site("residual", 0), W) is W and written(model, Site("mlp_out", 0), W) is W
    assert "through the MLP only" in written(model, Site("mlp_in", 0), W)
    layer = model.get_submodule("model.layers.0" if isinstance(model, LlamaForCausalLM) else "transformer.h.0")
    layer.post_feedforward_layernorm = torch.nn.Identity()  # Gemma 2's name
    assert "norms the output" in written(model, Site("mlp_out", 0), W)


def test_an_unknown_norm_is_refused(model):
    parent = model.model if isinstance(model, LlamaForCausalLM) else model.transformer
    name = "norm" if isinstance(model, LlamaForCausalLM) else "ln_f"
    delattr(parent, name)
    with pytest.raises(ValueError, match="no final norm found"):
        final_norm(model)
