"""Models under a rule: shared weights, equal to the dense model at density 1, decoding as masking measures."""

import pytest
import torch
from transformers import GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

from slms.kernels import neurons
from slms.models.anatomy import find_mlps
from slms.models.dynamic import RULES, apply_rule, dynamic_mlps, masking, set_densities
from slms.models.families import FAMILIES
from slms.models.transformers_internals import CACHE
from slms.models.weights import read_mlp
from tests.tiny import tiny_config


def make(kind):
    torch.manual_seed(0)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=44,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
        return LlamaForCausalLM(config).eval()
    config = tiny_config(40, hidden_size=16, max_position_embeddings=32)
    return GPTNeoForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["llama", "gpt_neo"])
def model(request):
    return make(request.param)


IDS = torch.randint(40, (3, 16), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_dense_at_density_1_and_shared_weights(model):
    before = model(IDS).logits
    dynamic = apply_rule(model, "low_rank", IDS)
    assert list(dynamic_mlps(dynamic)) == ["L0.mlp", "L1.mlp"] and not dynamic_mlps(model)
    with masking(dynamic):
        torch.testing.assert_close(dynamic(IDS).logits, before, rtol=1e-4, atol=1e-4)
    assert not any(mlp.masking for mlp in dynamic_mlps(dynamic).values())
    mine = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in mine for p in dynamic.parameters())
    torch.testing.assert_close(model(IDS).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", ["oracle", "teal", "low_rank"])
@torch.no_grad()
def test_no_token_copies_a_matrix(tiny, monkeypatch, family, rule):
    """What the loops read is what the rule holds, in every family, however that stores its matrices."""
    model = tiny(family)
    dynamic = apply_rule(model, rule, IDS)
    held = [mlp.weights[:2] + mlp.weights[4:5] for mlp in dynamic_mlps(dynamic).values()]
    held += [(mlp.W_in_t, getattr(mlp, "W_gate_t", None)) for mlp in dynamic_mlps(dynamic).values() if rule == "teal"]
    known, read = {W.data_ptr() for matrices in held for W in matrices if W is not None}, set()
    for name in ("_dots", "_sums"):
        monkeypatch.setattr(neurons, name, lambda *arrays: read.add(arrays[1].ctypes.data))
    set_densities(dynamic, 0.5)
    for mlp in dynamic_mlps(dynamic).values():
        call = mlp.compiled().held
        assert {W.data_ptr() for W in (call.W_in, call.W_gate, call.W_out) if W is not None} <= known
        monkeypatch.setattr(mlp, "compiled", lambda: None)  # where the whole rule is not one compiled call
    dynamic(IDS[:1, :1])
    assert read and read <= known
    if family != "gpt2":  # the up-projections are shared
        ups = [mlp.weights.W_in.data_ptr() for mlp in dynamic_mlps(dynamic).values()]
        assert ups == [read_mlp(mlp).W_in.data_ptr() for mlp in find_mlps(model).values()]


@torch.no_grad()
def test_decoding_is_what_masking_measures(model):
    """GRIFFIN's prompt is dense in both, so every later logit must agree, through the cache too."""
    dynamic = apply_rule(model, "griffin", IDS)
    set_densities(dynamic, {"L0.mlp": 0.25, "L1.mlp": 0.5})
    with masking(dynamic):
        wanted = dynamic(IDS[:1]).logits[:, 8:]
    out = dynamic(IDS[:1, :8], use_cache=True)
    logits = []
    for i in range(8, 16):
        out = dynamic(IDS[:1, i : i + 1], use_cache=True, **{CACHE: out[CACHE]})
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, 1), wanted, rtol=1e-4, atol=1e-4)


def test_generates(model):
    dynamic = apply_rule(model, "teal", IDS)
    set_densities(dynamic, 0.5)
    out = dynamic.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 20)


def test_refusals(model):
    with pytest.raises(ValueError, match=f"`rule` is 'magic'; on a dense model it must be one of {', '.join(RULES)}"):
        apply_rule(model, "magic", IDS)
    import slms

    routed = slms.route(model, slms.RoutingConfig(n_pathways=4, k=2, partition="random", router_init="random"), IDS)
    with pytest.raises(ValueError, match="this one is routed"):
        apply_rule(routed, "oracle", IDS)
