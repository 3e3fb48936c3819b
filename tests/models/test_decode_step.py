"""The compiled decode step against transformers' own forward, and all that it must leave to it."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from slms.kernels.cpu import decoder
from slms.measure.dynamick import set_routed_rule
from slms.models.anatomy import find_mlps
from slms.models.decode_step import speed_up
from slms.models.dynamic import RULES, apply_rule, force_rules, set_densities
from slms.models.routed import record_routes
from slms.models.transformers_internals import CACHE
from tests.models.decoding import KINDS, SERVED, decode, pair

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_rules_run_inside_and_follow_their_density(tiny, tokens, ran, rule):
    """GRIFFIN's sets come from the prompt, so that its step begins behind it."""
    stock = apply_rule(tiny("llama"), rule, tokens(4, 16))
    fast, ids = speed_up(copy.deepcopy(stock)), tokens(1, 12)
    for density in (0.5, 0.25):
        for model in (stock, fast):
            set_densities(model, density)
        torch.testing.assert_close(decode(fast, ids), decode(stock, ids), atol=1e-5, rtol=1e-5)
    assert ran == [True] * 16
    kinds = fast.model.__dict__["forward"]._layout.table[:, decoder.KIND]
    assert (kinds == decoder.BY_RULE).all()


@torch.no_grad()
def test_a_rule_that_is_slower_than_dense_runs_dense_inside(tiny, tokens, ran):
    dense, ids = tiny("llama"), tokens(1, 12)
    fast = speed_up(apply_rule(dense, "low_rank", tokens(4, 16)))
    set_densities(fast, 0.9)
    torch.testing.assert_close(decode(fast, ids), decode(dense, ids), atol=1e-5, rtol=1e-5)
    force_rules(fast)  # the step sees that what runs has changed
    assert (decode(fast, ids) - decode(dense, ids)).abs().max() > 1e-4
    assert ran == [True] * 16


@torch.no_grad()
def test_the_step_follows_the_rule(tiny, tokens, ran):
    stock, fast = pair(tiny, tokens, "llama", "thresholds")
    for rule in ("controlled", "top_k", "controlled"):
        for model in (stock, fast):
            set_routed_rule(model, rule, None, tokens(4, 16), 4)
        torch.testing.assert_close(decode(fast, tokens(1, 12)), decode(stock, tokens(1, 12)), atol=1e-5, rtol=1e-5)
    assert ran == [True] * 24


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", SERVED)
@torch.no_grad()
def test_logits_and_cache_are_transformers_own(tiny, tokens, ran, family, kind):
    stock, fast = pair(tiny, tokens, family, kind)
    ids = tokens(1, 12)
    torch.testing.assert_close(decode(fast, ids), decode(stock, ids), atol=1e-5, rtol=1e-5)
    assert ran == [True] * 8
    if kind in ("router", "shared"):
        kinds = fast.model.__dict__["forward"]._layout.table[:, decoder.KIND].tolist()
        assert kinds == [decoder.DENSE if kind == "shared" else decoder.BY_ROUTER] + [decoder.BY_ROUTER] * 2
    caches = [DynamicCache(config=stock.config) for _ in range(2)]
    for model, cache in zip((stock, fast), caches, strict=True):
        model(ids[:, :5], use_cache=True, **{CACHE: cache})
        model(ids[:, 5:6], use_cache=True, **{CACHE: cache})
    for one, other in zip(*(cache.layers for cache in caches), strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_generate(tiny, tokens, ran):
    stock, fast = pair(tiny, tokens, "llama", "neurons")
    ids, settings = tokens(1, 5), dict(do_sample=False, max_new_tokens=12, min_new_tokens=12, pad_token_id=0)
    whole = torch.ones_like(ids)
    assert torch.equal(
        fast.generate(ids, attention_mask=whole, **settings), stock.generate(ids, attention_mask=whole, **settings)
    )
    assert ran == [True] * 11
    ran.clear()
    padded = torch.tensor([[0, 0, 1, 1, 1]])
    several = tokens(3, 5)
    for batch, mask in ((ids, padded), (several, torch.ones_like(several)), (several, padded.repeat(3, 1))):
        pair_of = [model.generate(batch, attention_mask=mask, **settings) for model in (fast, stock)]
        assert torch.equal(*pair_of)
    assert ran == []


@torch.no_grad()
def test_everything_else_runs_as_before(tiny, tokens, ran):
    stock, fast = pair(tiny, tokens, "qwen3", "neurons")
    ids = tokens(1, 8)
    wanted = decode(stock, ids)

    def check(runs, **arguments):
        ran.clear()
        torch.testing.assert_close(decode(fast, ids, **arguments), wanted, atol=1e-5, rtol=1e-5)
        assert ran == runs

    check([True] * 4)
    with torch.enable_grad():
        check([])
    check([], output_hidden_states=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=True):
        decode(fast, ids)
    handle, heard = fast.model.layers[1].self_attn.register_forward_hook(lambda *a: heard.append(1)), []
    check([False] * 4)
    assert len(heard) == 5
    handle.remove()
    with record_routes(fast) as routes:
        check([False] * 4)
    assert len(routes) == len(fast.model.layers)
    fast.model.layers[0].mlp.train()
    check([False] * 4)
    fast.eval()
    torch.set_num_threads(2)
    check([])
    torch.set_num_threads(1)
    cache = StaticCache(config=fast.config, max_cache_len=16)
    ran.clear()
    fast(ids[:, :4], **{CACHE: cache})
    last = fast(ids[:, 4:5], **{CACHE: cache}).logits
    torch.testing.assert_close(last, wanted[:, :1], atol=1e-5, rtol=1e-5)
    assert ran == []


@torch.no_grad()
def test_changes_after_the_first_token_are_followed(tiny, tokens, ran):
    stock, fast = pair(tiny, tokens, "llama", "neurons")
    ids = tokens(1, 7)

    def check(runs=True):
        ran.clear()
        torch.testing.assert_close(decode(fast, ids), decode(stock, ids), atol=1e-5, rtol=1e-5)
        assert ran == [runs] * 3

    check()
    for model in (stock, fast):
        model.model.layers[1].self_attn.v_proj.weight.mul_(1.3)
        model.model.norm.weight.mul_(0.7)
    check()
    for model in (stock, fast):
        model.model.layers[0].mlp.k = 2
        model.model.layers[0].self_attn.q_proj.weight = nn.Parameter(model.model.layers[0].self_attn.q_proj.weight * 2)
    check()
    for model in (stock, fast):
        model.model.layers[1].mlp = find_mlps(tiny("llama"))[1]
    check()
    linear = stock.model.layers[1].self_attn.o_proj
    for model in (stock, fast):
        model.model.layers[1].self_attn.o_proj = nn.Sequential(linear)
    check(False)
    for model in (stock, fast):
        model.model.layers[1].self_attn.o_proj = linear
        model.double()
    ran.clear()
    torch.testing.assert_close(decode(fast, ids), decode(stock, ids))
    assert ran == []


@torch.no_grad()
def test_changes_of_a_router_are_followed(tiny, tokens, ran):
    stock, fast = pair(tiny, tokens, "llama", "shared")
    ids, seen = tokens(1, 7), []
    for change in (
        lambda mlp: None,
        lambda mlp: mlp.router.out.weight.mul_(-1),
        lambda mlp: mlp.router.selection_bias.add_(torch.tensor([0.0, 3.0, -3.0, 0.0])),
        lambda mlp: setattr(mlp, "k", 2),
        lambda mlp: setattr(mlp, "k", 4),
    ):
        for model in (stock, fast):
            change(model.model.layers[1].mlp)
        seen.append(decode(stock, ids))
        torch.testing.assert_close(decode(fast, ids), seen[-1], atol=1e-5, rtol=1e-5)
    assert all((after - before).abs().max() > 1e-4 for before, after in itertools.pairwise(seen))
    assert ran == [True] * 15


@torch.no_grad()
@pytest.mark.parametrize("name", ["_modules", "_parameters", "__dict__"])
def test_replaced_dictionaries_are_noticed(tiny, tokens, ran, name):
    stock, fast = pair(tiny, tokens, "llama")
    ids = tokens(1, 7)
    decode(fast, ids)
    for model in (stock, fast):
        layers, linear = model.model.layers, model.model.layers[0].self_attn.q_proj
        if name == "_modules":
            layers._modules = dict(zip(layers._modules, reversed(layers._modules.values()), strict=True))
        elif name == "_parameters":
            linear._parameters = {"weight": nn.Parameter(linear.weight * 2), "bias": None}
        else:
            other = copy.deepcopy(linear)
            other.weight.mul_(2)
            linear.__setstate__(other.__dict__)
    torch.testing.assert_close(decode(fast, ids), decode(stock, ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_copies_have_a_step_of_their_own(tiny, tokens, ran, tmp_path):
    stock, fast = pair(tiny, tokens, "llama")
    ids = tokens(1, 6)
    wanted = decode(fast, ids)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.model.forward.stack is other.model and other.lm_head.forward.head is other.lm_head
        ran.clear()
        assert torch.equal(decode(other, ids), wanted) and ran == [True, True]
        other.model.layers[0].mlp.up_proj.weight.zero_()
        assert not torch.equal(decode(other, ids), wanted)
    assert torch.equal(decode(fast, ids), wanted)
    fast.save_pretrained(tmp_path)
    loaded = type(stock).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(decode(loaded, ids), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_sliding_window_and_other_families_do_not_change(tiny, tokens, ran):
    model = tiny("mistral")
    model.config.sliding_window = 3
    fast, ids = speed_up(copy.deepcopy(model)), tokens(1, 9)
    torch.testing.assert_close(decode(fast, ids), decode(model, ids), atol=1e-5, rtol=1e-5)
    assert ran == []
    for family in ("gemma2", "gpt2"):
        assert "forward" not in vars(speed_up(tiny(family)).base_model)
