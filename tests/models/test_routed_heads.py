"""Routed heads against attention written from its definition, head by head, in every family."""

import pytest
import torch
import torch.nn.functional as F

from slms.models.anatomy import find_attentions, find_mlps
from slms.models.convert import route
from slms.models.families import FAMILIES
from slms.models.io import load_model, save_model
from slms.models.routed import choose_by, record_routes, routed_modules, set_k
from slms.models.routed_heads import RoutedHeads, head_shape, query_rows
from slms.models.sensitivity import sensitivity_roots
from slms.routing import RoutingConfig
from tests.models.heads_by_definition import by_definition, seen

FIELDS = {"target": "attention", "k_heads": 1, "router": "linear", "every_n_layers": 1, "mean_compensation": True}
CONFIG = RoutingConfig(**FIELDS)
OPTIONS = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}


def test_the_output_is_that_of_the_definition_and_the_choice_the_best_of_each_group(tiny, tokens, family):
    routed = route(tiny(family), CONFIG, tokens(4, 16))
    if family == "gemma2":  # only eager attention is sure to cap its scores
        routed.set_attn_implementation("eager")
    shape = head_shape(routed.config)
    assert shape.groups == (2 if family not in ("gpt_neo", "gpt2", "gpt_neox") else 1)
    for at, heads in find_attentions(routed).items():
        x, y, routes = seen(routed, at, tokens(1, 12, seed=1))
        grouped = routes.chosen.unflatten(1, (shape.groups, -1))
        assert (grouped.sum(-1) == 1).all() and torch.equal(routes.gates, routes.chosen.float())
        best = routes.scores.unflatten(1, (shape.groups, -1)).argmax(-1, keepdim=True)
        assert torch.equal(grouped, torch.zeros_like(grouped).scatter(-1, best, True))
        with torch.no_grad():
            wanted = by_definition(family, routed.config, heads, x, routes.gates, routes.chosen)
        torch.testing.assert_close(y, wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("target", ["attention", "both"])
def test_with_every_head_it_equals_the_dense_model(tiny, tokens, family, target):
    model, ids = tiny(family), tokens(2, 14)
    more = {"n_pathways": 5, "k": 5, "gate": "unit"} if target == "both" else {}
    routed = route(model, RoutingConfig(target=target, router="linear", every_n_layers=1, **more), tokens(4, 16))
    wanted = ["attn"] * 3 if target == "attention" else ["attn", "mlp"] * 3
    assert [place.split(".")[1] for place in routed_modules(routed)] == wanted
    with torch.no_grad():
        torch.testing.assert_close(routed(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


SAVED = [(family, "linear") for family in FAMILIES]  # those without weights differ in how queries are stored
SAVED += [(family, router) for router in ("query_norm", "static") for family in ("gpt2", "gpt_neox", "gemma3_text")]


@pytest.mark.parametrize(("name", "router"), SAVED)
def test_saved_models_come_back(tiny, tokens, name, router, tmp_path):
    config = RoutingConfig(target="attention", k_heads=1, router=router, every_n_layers=2, mean_compensation=True)
    routed, ids = route(tiny(name), config, tokens(4, 16)), tokens(2, 9)
    save_model(routed, None, tmp_path / "m")
    again = load_model(tmp_path / "m").model
    assert type(again) is type(routed) and list(routed_modules(again)) == ["L0.attn", "L2.attn"]
    assert torch.equal(again(ids).logits, routed(ids).logits)
    with torch.no_grad():
        assert (routed(ids).logits - tiny(name)(ids).logits).abs().max() > 1e-3


GENERATED = [(name, beams, {}) for name in FAMILIES for beams in (1, 2)]
GENERATED += [
    (name, beams, fields)
    for fields in (
        {"target": "both", "n_pathways": 5, "k": 2, "gate": "unit"},
        {"target": "both", "n_pathways": 5, "k": 2, "gate": "unit", "rule": "controlled"},
        {"router": "query_norm"},
        {"router": "static"},
    )
    for name, beams in (("gpt2", 1), ("gpt_neox", 2), ("gemma3_text", 1))
]
GENERATED += [(name, 2, {"k_heads": 2, "n_shared_heads": 1, "gate": "ramp"}) for name in ("gpt_neo", "gpt_neox")]


@pytest.mark.parametrize(("name", "beams", "fields"), GENERATED)
def test_generation_with_cache_and_padding_equals_each_text_alone_without(tiny, tokens, name, beams, fields):
    routed = route(tiny(name), RoutingConfig(**FIELDS | fields), tokens(4, 16))
    rows = [tokens(1, t, seed=t)[0] for t in (3, 11)]
    ids = torch.stack([torch.cat([torch.full((11 - len(row),), 2), row]) for row in rows])
    mask = torch.stack([torch.cat([torch.zeros(11 - len(row)), torch.ones(len(row))]) for row in rows]).long()
    together = routed.generate(ids, attention_mask=mask, num_beams=beams, **OPTIONS)
    for row, made in zip(rows, together, strict=True):
        alone = routed.generate(row[None], num_beams=beams, use_cache=False, **OPTIONS)[0]
        assert torch.equal(made[-len(alone) :], alone)


def test_queries_are_the_rows_of_each_familys_own_projection(tiny, tokens, family):
    model = tiny(family)
    attention, shape = find_attentions(model)[0], head_shape(model.config)
    x = torch.randn(5, shape.d)
    weight, bias = query_rows(attention, shape)
    q = F.linear(x, weight, bias)
    if family == "gpt2":
        wanted = attention.c_attn(x)[:, : shape.d]
    elif family == "gpt_neox":
        wanted = attention.query_key_value(x).view(5, shape.h, 3 * shape.e)[:, :, : shape.e].flatten(1)
    else:
        wanted = attention.q_proj(x)
    torch.testing.assert_close(q, wanted)


def test_selectors_without_weights(tiny, tokens):
    """MoH's rule takes the largest norms; static heads are those of the greatest mean contribution."""
    ids = tokens(4, 16)
    model = tiny("llama")
    for router in ("query_norm", "static"):
        config = RoutingConfig(target="attention", k_heads=1, router=router, layers=[1])
        routed = route(model, config, ids)
        heads = routed_modules(routed, RoutedHeads)["L1.attn"]
        x, _, routes = seen(routed, 1, tokens(1, 12, seed=1))
        if router == "query_norm":
            norms = heads.attention.q_proj(x).view(12, 4, 6).norm(dim=-1)
            wanted = norms.view(12, 2, 2).argmax(-1)
        else:
            assert not any(p.requires_grad for p in heads.router.parameters())
            wanted = heads.router.contribution.view(2, 2).argmax(-1).expand(12, 2)
            assert heads.router.contribution.min() > 0
        assert torch.equal(routes.chosen.view(12, 2, 2).int().argmax(-1), wanted)
        assert "by its" not in heads.summary()


def test_calibration_measures_what_a_head_writes(tiny, tokens):
    """The mean of o_h W_O[h], and norms of what is lost, from a dense model by hooks of the test's own."""
    model, ids = tiny("qwen3"), tokens(4, 16)
    routed = route(model, RoutingConfig(target="attention", k_heads=1, router="static", mean_compensation=True), ids)
    heads = routed_modules(routed, RoutedHeads)["L0.attn"]
    kept = []
    handle = find_attentions(model)[0].o_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        model(ids)
    handle.remove()
    o = kept[0].view(-1, 4, 6)
    W = find_attentions(model)[0].o_proj.weight.T.view(4, 6, 24)
    written = torch.einsum("n h e, h e d -> n h d", o, W)
    torch.testing.assert_close(heads.mean_out, written.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        heads.router.contribution, (written - written.mean(0)).norm(dim=-1).mean(0), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("target", ["attention", "both"])
def test_importance_by_loss_weighs_what_a_head_writes_by_what_the_predictions_mind(tiny, tokens, family, target):
    """Scores and static heads follow ‖(o_h W_O − mean) R‖, from hooks of the test's own; nothing else changes."""
    model, ids, kept = tiny(family), tokens(4, 16), []
    attention = find_attentions(model)[1]
    handle = getattr(attention, FAMILIES[family].out).register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        model(ids)
    handle.remove()
    root = sensitivity_roots(model, {1: attention}, ids)[1]
    options = {"target": target, "layers": [1], "k_heads": 1, "mean_compensation": True, "router": "linear"}
    heads, plain = (
        routed_modules(route(model, RoutingConfig(**options, importance=importance), ids), RoutedHeads)["L1.attn"]
        for importance in ("loss", "norm")
    )
    h, e = heads.shape.h, heads.shape.e
    written = torch.einsum("n h e, h e d -> n h d", kept[0].reshape(-1, h, e), heads.W_O().view(h, e, -1))
    norms = ((written - written.mean(0)) @ root).norm(dim=-1)
    torch.testing.assert_close(heads.router.norm_shift, norms.mean(), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(heads.router.out.weight, plain.router.out.weight, rtol=1e-3)
    assert torch.equal(heads.mean_out, plain.mean_out)
    if target == "attention":
        static = route(model, RoutingConfig(**options | {"router": "static"}, importance="loss"), ids)
        found = routed_modules(static, RoutedHeads)["L1.attn"].router.contribution
        torch.testing.assert_close(found, norms.mean(0), atol=1e-6, rtol=1e-4)


def test_gradients_reach_router_and_weights_as_in_the_definition(tiny, tokens):
    """The gate is 1 with the gradient of a probability, so d loss / d score follows from d loss / d gate."""
    routed = route(
        tiny("llama"), RoutingConfig(target="attention", k_heads=1, router="linear", layers=[1]), tokens(4, 16)
    )
    heads = routed_modules(routed, RoutedHeads)["L1.attn"]
    ids = tokens(2, 9, seed=3)
    with record_routes(routed) as routes:
        loss = routed(ids, use_cache=False).logits.square().mean()
    found = routes["L1.attn"]
    gate, score = torch.autograd.grad(loss, [found.gates, found.scores], retain_graph=True)
    probs = found.probs.detach().view(-1, 2, 2)
    upstream = (gate * found.chosen).view(-1, 2, 2)
    wanted = probs * (upstream - (probs * upstream).sum(-1, keepdim=True))
    torch.testing.assert_close(score.view(-1, 2, 2), wanted)
    loss.backward()
    assert heads.router.out.weight.grad.abs().sum() > 0 and heads.attention.k_proj.weight.grad.abs().sum() > 0


def test_k_and_choosers(tiny, tokens):
    routed, ids = route(tiny("llama"), CONFIG, tokens(4, 16)), tokens(2, 9)
    set_k(routed, 2)
    torch.testing.assert_close(routed(ids).logits, tiny("llama")(ids).logits, atol=1e-5, rtol=1e-5)
    heads = routed_modules(routed, RoutedHeads)["L0.attn"]
    for k, words in ((3, "multiple of the groups of L0.attn"), (1, "from 2 to"), (6, "from 2 to")):
        with pytest.raises(ValueError, match=words):
            heads.k = k
    first = torch.tensor([True, False, False, True])
    with choose_by(routed, {"L0.attn": lambda x, routes: first.expand(len(x), 4)}), record_routes(routed) as routes:
        routed(ids)
    assert torch.equal(routes["L0.attn"].gates, first.float().expand(18, 4))


def test_what_cannot_be_is_refused_by_name(tiny, tokens):
    with pytest.raises(ValueError, match=r"`routing.k_heads` is 3; each of this model's 2 groups of query heads has 2"):
        route(tiny("llama"), RoutingConfig(target="attention", k_heads=3), tokens(4, 16))
    with pytest.raises(ValueError, match=r"`routing.k_heads` is 5; each of this model's 1 groups"):
        route(tiny("gpt2"), RoutingConfig(target="attention", k_heads=5), tokens(4, 16))
    with pytest.raises(ValueError, match=r"`routing\.router` is static; it needs calibration tokens"):
        route(tiny("llama"), RoutingConfig(target="attention", router="static"))
    with pytest.raises(ValueError, match=r"`routing\.n_shared_heads` is 1; it needs calibration tokens"):
        route(tiny("llama"), RoutingConfig(target="attention", router="linear", k_heads=2, n_shared_heads=1))


def test_mlps_of_a_model_with_routed_heads_stay_dense(tiny, tokens):
    routed = route(tiny("gpt_neo"), CONFIG, tokens(4, 16))
    assert all("Routed" not in type(mlp).__name__ for mlp in find_mlps(routed).values())
    assert "4 heads, the best 1 chosen by its linear router, density 0.25" in repr(routed)
    assert repr(routed).endswith("25% of all attention heads execute for a token")
