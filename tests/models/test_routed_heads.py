"""Routed heads against attention written from its definition, head by head, in every family."""

import pytest
import torch
import torch.nn.functional as F

from slms.models.anatomy import find_attentions, find_mlps
from slms.models.base import random_twin
from slms.models.convert import route
from slms.models.families import FAMILIES
from slms.models.io import load_model, save_model
from slms.models.routed import choose_by, record_routes, routed_modules, set_k
from slms.models.routed_heads import RoutedHeads, head_shape, query_rows
from slms.models.sensitivity import sensitivity_roots
from slms.routing import RoutingConfig

CONFIG = RoutingConfig(target="attention", k_heads=1, router="linear", every_n_layers=1, mean_compensation=True)
OPTIONS = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}


def rotated(x: torch.Tensor, base: float, size: int) -> torch.Tensor:
    """The rotary embedding of x [t, e] in its first `size` dimensions (an odd one counts as a pair), pair by pair."""
    y, pairs, t = x.clone(), -(-size // 2), torch.arange(len(x))
    for i in range(pairs):
        angle = t / base ** (2 * i / size)
        a, b = x[:, i], x[:, i + pairs]
        y[:, i] = a * angle.cos() - b * angle.sin()
        y[:, i + pairs] = b * angle.cos() + a * angle.sin()
    return y


def by_definition(family: str, config, heads: RoutedHeads, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor):
    """The output [t, d] of one attention at inputs x [t, d], with gates and choices [t, h]; loops over heads and rows.

    It reads the weights as each family stores them.
    """
    a, (d, h, kv, e), t = heads.attention, head_shape(config), len(x)
    at = heads.layer_index
    if family == "gpt2":
        q, k, v = (x @ a.c_attn.weight + a.c_attn.bias).split(d, 1)
    elif family == "gpt_neox":
        qkv = (x @ a.query_key_value.weight.T + a.query_key_value.bias).view(t, h, 3, e)
        q, k, v = (qkv[:, :, i].reshape(t, -1) for i in range(3))
    else:
        q, k, v = (p(x) for p in (a.q_proj, a.k_proj, a.v_proj))
    y = torch.zeros(t, d, dtype=x.dtype)
    kinds = getattr(config, "layer_types", None)
    for head in range(h):
        mine = head // (h // kv)
        qh, kh, vh = q[:, head * e :][:, :e], k[:, mine * e :][:, :e], v[:, mine * e :][:, :e]
        if hasattr(a, "q_norm"):
            qh, kh = a.q_norm(qh), a.k_norm(kh)
        if family not in ("gpt_neo", "gpt2"):
            rope = config.rope_parameters
            if family == "gemma3_text":
                rope = rope[kinds[at]]
            size = int(e * rope.get("partial_rotary_factor", 1.0))
            qh, kh = (rotated(z, rope["rope_theta"], size) for z in (qh, kh))
        scale = 1.0 if family == "gpt_neo" else e**-0.5
        if family in ("gemma2", "gemma3_text"):
            scale = config.query_pre_attn_scalar**-0.5
        window = t
        if family == "gpt_neo" and config.attention_layers[at] == "local":
            window = config.window_size
        elif family == "mistral" or (kinds and kinds[at] == "sliding_attention"):
            window = config.sliding_window
        for i in range(t):
            first = max(0, i - window + 1)
            scores = kh[first : i + 1] @ qh[i] * scale
            if getattr(config, "attn_logit_softcapping", None):
                scores = config.attn_logit_softcapping * (scores / config.attn_logit_softcapping).tanh()
            o = scores.softmax(0) @ vh[first : i + 1]
            y[i] += gates[i, head] * o @ heads.W_O()[head * e : (head + 1) * e]
            if heads.mean_out is not None and not chosen[i, head]:
                y[i] += heads.mean_out[head]
    return y if heads.out.bias is None else y + heads.out.bias


def seen(model, at: int, ids: torch.Tensor):
    """The input and output [t, d] of a layer's attention on one block, and the routes there."""
    found = {}
    heads = find_attentions(model)[at]

    def keep(_, args, kwargs, output):
        found["x"], found["y"] = (args[0] if args else kwargs["hidden_states"])[0], output[0][0]

    handle = heads.register_forward_hook(keep, with_kwargs=True)
    with record_routes(model) as routes, torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    return found["x"], found["y"], routes[f"L{at}.attn"]


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


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_with_cache_and_padding_equals_each_text_alone_without(tiny, tokens, family, beams):
    routed = route(tiny(family), CONFIG, tokens(4, 16))
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


@pytest.mark.parametrize(("name", "gate"), [("gpt_neo", "unit"), ("gpt2", "ramp"), ("gpt_neox", "softmax")])
def test_shared_heads_run_for_every_token_and_are_saved(tiny, tokens, name, gate, tmp_path):
    """They are those that write most, by plain norms also where the router follows the loss."""
    fields = {"target": "attention", "every_n_layers": 1, "mean_compensation": True, "layers": [1]}
    ids, text = tokens(4, 16), tokens(1, 12, seed=1)
    config = RoutingConfig(**fields, k_heads=3, n_shared_heads=2, router="linear", importance="loss", gate=gate)
    routed = route(tiny(name), config, ids)
    heads = routed_modules(routed, RoutedHeads)["L1.attn"]
    static = route(tiny(name), RoutingConfig(**fields, k_heads=2, router="static"), ids)
    most = routed_modules(static, RoutedHeads)["L1.attn"].router.contribution.topk(2).indices
    x, y, routes = seen(routed, 1, text)
    assert routes.chosen[:, most].all() and (routes.chosen.sum(1) == 3).all()
    others = torch.ones(4).index_fill(0, most, 0).nonzero()[:, 0]
    assert torch.equal(routes.chosen[:, others].int().argmax(1), routes.scores[:, others].argmax(1))
    with torch.no_grad():
        torch.testing.assert_close(
            y, by_definition(name, routed.config, heads, x, routes.gates, routes.chosen), atol=2e-5, rtol=2e-5
        )
    assert "the best 3 chosen by its linear router, 2 of them for every token" in heads.summary()
    assert torch.equal(heads.competing, others) and heads.n_always == 2
    with pytest.raises(ValueError, match="k is 2; it must be from 3"):
        heads.k = 2
    save_model(routed, None, tmp_path / "m")
    assert torch.equal(load_model(tmp_path / "m").model(text).logits, routed(text).logits)
    _, _, routes = seen(random_twin(routed), 1, text)  # a null model, whose heads nobody calibrated
    assert (routes.chosen.sum(1) == 3).all() and routes.chosen[:, :2].all()


def test_with_every_head_shared_heads_change_nothing(tiny, tokens, family):
    model, ids = tiny(family), tokens(2, 14)
    each = head_shape(model.config).h // head_shape(model.config).groups
    config = RoutingConfig(target="attention", k_heads=each, n_shared_heads=each - 1, router="linear", every_n_layers=1)
    routed = route(model, config, tokens(4, 16))
    with torch.no_grad():
        torch.testing.assert_close(routed(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


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
