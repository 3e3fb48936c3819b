"""Sites read and replaced, dense and routed, against the model's own arithmetic."""

import pytest
import torch
from torch.testing import assert_close
from transformers import GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

from slms.models.anatomy import find_mlps, replace_mlp
from slms.models.routed import record_routes
from slms.models.routed_mlp import RoutedMLP
from slms.models.sites import (
    Site,
    find_pair,
    find_site,
    hf_name,
    read_sites,
    replaced,
    site_names,
    site_of_hook,
    site_width,
)
from slms.models.weights import read_mlp
from slms.routing import RoutingConfig
from tests.tiny import tiny_config

IDS = torch.arange(24).view(2, 12) % 31


def gpt_neo():
    torch.manual_seed(0)
    config = tiny_config(31, num_layers=3, max_position_embeddings=16, intermediate_size=20)
    return GPTNeoForCausalLM(config).eval()


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=31, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20)
    return LlamaForCausalLM(config).eval()


def routed(model, layer=1, k=2):
    """The model with one MLP routed over 3 shuffled pathways."""
    mlp = find_mlps(model)[layer]
    weights = read_mlp(mlp)
    config = RoutingConfig(n_pathways=3, k=k, backend="reference", gate="softmax")
    new = RoutedMLP(
        8,
        20,
        config,
        activation=weights.activation,
        layer_index=layer,
        gated=weights.W_gate is not None,
        bias_in=weights.b_in is not None,
        bias_out=weights.b_out is not None,
    )
    dense = {name: value for name, value in weights._asdict().items() if name != "activation"}
    new.load_dense(**dense, permutation=torch.randperm(20, generator=torch.Generator().manual_seed(1)))
    replace_mlp(model, layer, new)
    return model.eval()


MODELS = {
    "gpt_neo": gpt_neo,
    "llama": llama,
    "routed gpt_neo": lambda: routed(gpt_neo()),
    "routed llama": lambda: routed(llama()),
}
CASES = [(m, kind) for m in MODELS for kind in ("residual", "mlp_in", "neurons", "mlp_out")]
CASES += [("routed gpt_neo", "pathway"), ("routed llama", "pathway")]


def read(model, *names):
    return read_sites(model, IDS, [find_site(model, name) for name in names])


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_activations_are_the_models_own(make):
    model = make()
    found = read(model, "residual.0", "residual.1", "mlp_in.1", "neurons.1", "mlp_out.1")
    states = model(IDS, output_hidden_states=True).hidden_states
    assert_close(found["residual.0"], states[1].flatten(0, 1))
    assert_close(found["residual.1"], states[2].flatten(0, 1))
    mlp = find_mlps(model)[1]
    assert_close(mlp(found["mlp_in.1"][None])[0], found["mlp_out.1"])
    weights = read_mlp(mlp)
    bias = 0 if weights.b_out is None else weights.b_out
    assert_close(found["neurons.1"] @ weights.W_out + bias, found["mlp_out.1"])
    assert found["neurons.1"].shape == (24, 20)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_width_is_that_of_the_activations(make):
    model = make()
    for name in site_names(model):
        assert site_width(model, find_site(model, name)) == read(model, name)[name].shape[1]


@pytest.mark.parametrize("make", [MODELS["routed gpt_neo"], MODELS["routed llama"]])
def test_pathways_add_up_to_the_mlp(make):
    model = make()
    names = [f"pathway.1.{p}" for p in range(3)]
    found = read(model, "mlp_out.1", *names)
    bias = find_mlps(model)[1].b_out
    assert_close(sum(found[name] for name in names) + (0 if bias is None else bias), found["mlp_out.1"])
    with record_routes(model) as routes:
        model(IDS)
    for p, name in enumerate(names):
        assert torch.equal(found[name].any(1), routes["L1.mlp"].chosen[:, p])


@pytest.mark.parametrize(("made", "kind"), CASES)
def test_replacing_by_itself_changes_nothing_and_by_zero_something(made, kind):
    model = MODELS[made]()
    name = "pathway.1.2" if kind == "pathway" else f"{kind}.1"
    site, before = find_site(model, name), model(IDS).logits
    with replaced(model, site, site, lambda x, y: x):
        assert_close(model(IDS).logits, before)
    with replaced(model, site, site, lambda x, y: torch.zeros_like(y)):
        assert not torch.allclose(model(IDS).logits, before)
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_what_is_put_in_is_what_the_rest_reads(make):
    model = make()
    other = torch.randn(24, 8)
    site = find_site(model, "residual.1")
    with replaced(model, site, site, lambda x, y: other):
        assert_close(model(IDS, output_hidden_states=True).hidden_states[2].flatten(0, 1), other)
    mlp, site, h = find_mlps(model)[1], find_site(model, "neurons.1"), torch.randn(24, 20)
    weights = read_mlp(mlp)
    with replaced(model, site, site, lambda x, y: h):
        found = read(model, "mlp_out.1")["mlp_out.1"]
    if not isinstance(mlp, RoutedMLP):  # a routed MLP's hooks run in the order of registration: covered by the logits
        assert_close(found, h @ weights.W_out + (0 if weights.b_out is None else weights.b_out))


def test_a_transcoder_replaces_the_output_from_the_input():
    model = gpt_neo()
    before, mlp = model(IDS).logits, find_mlps(model)[1]
    source, target = find_site(model, "mlp_in.1"), find_site(model, "mlp_out.1")
    with replaced(model, source, target, lambda x, y: mlp.forward(x[None])[0]):
        assert_close(model(IDS).logits, before)


def test_reading_stops_at_the_last_site():
    model = gpt_neo()
    ran = []
    model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    model.transformer.h[2].register_forward_hook(lambda *_: ran.append("layer 2"))
    read(model, "mlp_out.1", "residual.0")
    assert ran == []


def test_unknown_site_gives_the_nearest_names():
    with pytest.raises(ValueError, match=r"'residuals\.1'.*residual\.1"):
        find_site(gpt_neo(), "residuals.1")
    with pytest.raises(ValueError, match=r"residual\.9"):
        find_site(gpt_neo(), "residual.9")
    with pytest.raises(ValueError, match="pathway"):
        find_site(gpt_neo(), "pathway.1.0")


def test_a_target_comes_behind_its_source():
    model = gpt_neo()
    assert find_pair(model, "mlp_in.1", "mlp_out.1") == (Site("mlp_in", 1), Site("mlp_out", 1))
    assert find_pair(model, "mlp_in.1", None) == (Site("mlp_in", 1), Site("mlp_in", 1))
    find_pair(model, "residual.0", "mlp_in.1")
    for source, target in (("residual.1", "mlp_out.1"), ("mlp_in.1", "residual.0")):
        with pytest.raises(ValueError, match=f"'{source}' has target '{target}', which the model computes before it"):
            find_pair(model, source, target)


def test_names_elsewhere():
    model = gpt_neo()
    assert Site("residual", 3).hook_name == "blocks.3.hook_resid_post"
    assert Site("mlp_out", 3).hook_name == "blocks.3.hook_mlp_out"
    for name in site_names(model):
        assert model.get_submodule(hf_name(model, find_site(model, name))) is not None
        assert site_of_hook(model, find_site(model, name).hook_name).name == name
    with pytest.raises(ValueError, match=r"'blocks\.9\.hook_resid_post'.*blocks\."):
        site_of_hook(model, "blocks.9.hook_resid_post")
