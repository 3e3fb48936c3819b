"""Models cut down to their best neurons, of every architecture: they lose what they must, and nothing else changes."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import slms
from slms.models.activations import neuron_activations
from slms.models.anatomy import find_mlps, list_layers
from slms.models.convert import route
from slms.models.cut import cut, with_fresh_widths, write_mlp
from slms.models.flops import flops_per_token
from slms.models.weights import read_mlp
from slms.routing import RoutingConfig
from tests.models.conftest import D_FF

WIDTHS = {0: 20, 2: 7}


def test_every_neuron_kept_equals_dense(tiny, tokens, family):
    model, ids = tiny(family), tokens(2, 11)
    same = cut(model, dict.fromkeys(range(3), D_FF), tokens(8, 16, seed=1))
    torch.testing.assert_close(same(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert type(same).__name__ == f"Cut{type(model).__name__}" and type(model).__name__ in str(type(model))


def test_before_the_refit_a_cut_mlp_is_the_dense_one_with_masked_neurons(tiny, tokens, family):
    model, ids, kept = tiny(family), tokens(2, 11), torch.tensor([1, 4, 5, 30, 36])
    small, layers = with_fresh_widths(model, {1: 5})
    w = read_mlp(find_mlps(model)[1])
    rows = {name: getattr(w, name) for name in ("W_in", "W_out", "W_gate", "b_in", "b_gate")}
    rows = {name: None if row is None else row[kept] for name, row in rows.items()}
    with torch.no_grad():
        write_mlp(layers[1], w._replace(**rows, b_out=torch.zeros(24) if w.b_out is None else w.b_out))
        masked = copy.deepcopy(model)
        dropped = torch.ones(D_FF, dtype=torch.bool)
        dropped[kept] = False
        read_mlp(find_mlps(masked)[1]).W_out[dropped] = 0.0
    torch.testing.assert_close(small(ids).logits, masked(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_cut_model_is_saved_loaded_and_generates(tiny, tokens, family, tmp_path):
    model, ids = tiny(family), tokens(2, 5)
    small = cut(model, WIDTHS, tokens(8, 16))
    assert [layer.d_ff for layer in list_layers(small)] == [20, D_FF, 7]
    slms.save_model(small, None, tmp_path / "m")
    for again in (slms.load_model(tmp_path / "m").model, AutoModelForCausalLM.from_pretrained(tmp_path / "m")):
        assert type(again) is type(small) and again.config.cut == {"L0.mlp": 20, "L2.mlp": 7}
        assert torch.equal(again(ids).logits, small(ids).logits)
        assert flops_per_token(again, 8) == flops_per_token(small, 8)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    cached = small.generate(ids, use_cache=True, **options)
    assert cached.shape == (2, 17) and torch.equal(cached, small.generate(ids, use_cache=False, **options))


def test_flops_are_those_of_its_matrices(tiny, tokens, family):
    model = tiny(family)
    small = cut(model, WIDTHS, tokens(4, 16))
    matrices = 2 if family in ("gpt_neo", "gpt2", "gpt_neox") else 3
    got, dense = flops_per_token(small, 8), flops_per_token(model, 8)
    counted = sum(
        2 * weight.numel() for mlp in find_mlps(small).values() for weight in mlp.parameters() if weight.ndim == 2
    )
    assert got.mlp_routed == counted == 2 * matrices * 24 * (20 + D_FF + 7)
    assert (got.mlp_dense, got.total_dense) == (dense.mlp_dense, dense.total_dense)
    assert got.total_dense - got.total_routed == got.mlp_dense - got.mlp_routed
    assert got.active_fraction == pytest.approx((20 + D_FF + 7) / (3 * D_FF))


def test_the_dense_model_is_not_changed_and_dtype_and_ties_are_kept(tiny, tokens):
    model = tiny("gemma2").bfloat16().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = cut(model, WIDTHS, tokens(4, 16))
    assert model.training and small.training and {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert small.lm_head.weight is small.model.embed_tokens.weight
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert small.eval()(tokens(1, 5)).logits.isfinite().all()


def test_neurons_of_a_cut_mlp_are_read_like_a_dense_one_s(tiny, tokens):
    small = cut(tiny("llama"), WIDTHS, tokens(4, 16))
    with torch.no_grad(), neuron_activations(small) as found:
        small(tokens(1, 6))
    assert [found[i].shape for i in range(3)] == [(6, 20), (6, D_FF), (6, 7)]


def test_impossible_cuts_are_refused(tiny, tokens):
    model, ids = tiny("gpt_neo"), tokens(2, 8)
    cases = [
        (model, {0: 38}, ids, "`cut` gives L0.mlp 38 neurons; the dense MLP has 37"),
        (model, {3: 5}, ids, r"it must map places of MLPs, L0.mlp to L2.mlp, to numbers of neurons"),
        (model, {0: 0}, ids, "to numbers of neurons"),
        (model, {0: 5}, ids + 60, "the model knows 0 to 60"),
        (cut(model, {0: 5}, ids), {0: 5}, ids, "is cut already; start from its dense base instead"),
        (route(model, RoutingConfig(n_pathways=5, k=2, router="linear"), ids), {0: 5}, ids, "is routed already"),
    ]
    for case, widths, calibration, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            cut(case, widths, calibration)
        assert "\n" not in str(caught.value)
