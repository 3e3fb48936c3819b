"""Skipped heads against the masked computation, which computes all heads, in every family whose heads share keys."""

import dataclasses

import pytest
import torch

from slms.models import head_slots, routed_heads
from slms.models.anatomy import find_attentions
from slms.models.convert import route
from slms.models.head_slots import slots_of
from slms.models.routed import choose_by, routed_modules
from slms.models.routed_heads import RoutedHeads
from slms.routing import RoutingConfig

CONFIG = RoutingConfig(target="attention", k_heads=1, router="linear", every_n_layers=1, mean_compensation=True)
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch):
    monkeypatch.setattr(head_slots, "FEWEST", 1)


@pytest.fixture
def whole(monkeypatch):
    """Run something with all heads computed."""

    def run(work):
        with monkeypatch.context() as patch:
            patch.setattr(routed_heads, "can_be_slots", lambda *_: False)
            return work()

    return run


@pytest.fixture
def triton(monkeypatch):
    """Skip heads by Triton's kernels, on a CPU by its interpreter."""
    for module in (head_slots, routed_heads):
        monkeypatch.setattr(module, "on_gpu", lambda x: True)


@pytest.fixture
def used(monkeypatch) -> list:
    """Grows by one whenever heads are skipped."""
    calls: list = []
    own = routed_heads.with_slots
    monkeypatch.setattr(routed_heads, "with_slots", lambda *args: calls.append(1) or own(*args))
    return calls


def check_close(found, wanted):
    """Each tensor to 1e-4 of its largest number, as its sums have that scale."""
    for name, value in wanted.items():
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(
            found[name] / scale, value / scale, atol=1e-4, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("name", GROUPED)
def test_outputs_and_gradients_are_those_of_the_masked_computation(tiny, tokens, name, whole, used):
    routed, ids = route(tiny(name), CONFIG, tokens(4, 16)), tokens(2, 13)
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[0, :4] = 0
    upstream = torch.randn(2, 13, 61)

    def results():
        logits = routed(ids, attention_mask=mask, use_cache=False).logits
        routed.zero_grad()
        logits.backward(upstream * mask[:, :, None])
        return {"logits": logits[mask.bool()]} | {n: p.grad.clone() for n, p in routed.named_parameters()}

    found = results()
    assert len(used) == 3
    wanted = whole(results)
    assert len(used) == 3
    check_close(found, wanted)


@pytest.mark.parametrize("name", GROUPED)
def test_generation_is_the_same_with_and_without_cache(tiny, tokens, name, whole, used):
    routed, ids = route(tiny(name), CONFIG, tokens(4, 16)), tokens(2, 11)
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    cached = routed.generate(ids, **options)
    assert used and torch.equal(cached, routed.generate(ids, use_cache=False, **options))
    assert torch.equal(cached, whole(lambda: routed.generate(ids, **options)))


def test_weights_of_heads_that_nobody_chose_are_not_read(tiny, tokens, used):
    config = RoutingConfig(target="attention", k_heads=1, router="static", layers=[1])
    routed, ids = route(tiny("llama"), config, tokens(4, 16)), tokens(2, 9)
    before = routed(ids).logits
    heads = routed_modules(routed, RoutedHeads)["L1.attn"]
    x = torch.zeros(1, heads.shape.d)
    with torch.no_grad():
        for i in (~heads.routes(x).chosen[0]).nonzero().flatten().tolist():
            heads.attention.q_proj.weight[6 * i : 6 * i + 6] = torch.nan
            heads.out.weight[:, 6 * i : 6 * i + 6] = torch.nan
    assert torch.equal(routed(ids).logits, before) and used


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_triton_trains_and_generates_as_the_masked_computation(tiny, tokens, name, whole, used, triton):
    """All passes skip heads: 26 tokens with gradients, a prompt without, and decoding."""
    routed, ids = route(tiny(name), CONFIG, tokens(4, 16)), tokens(2, 13)
    upstream = torch.randn(2, 13, 61)

    def results():
        logits = routed(ids, use_cache=False).logits
        routed.zero_grad()
        logits.backward(upstream)
        return {"logits": logits} | {n: p.grad.clone() for n, p in routed.named_parameters()}

    found, wanted = results(), whole(results)
    assert len(used) == 3
    check_close(found, wanted)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    cached = routed.generate(ids, **options)
    assert len(used) == 3 + 4 * 3 and torch.equal(cached, whole(lambda: routed.generate(ids, **options)))


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
@pytest.mark.parametrize("kernels", ["cpu", "triton"])
def test_gates_other_than_1_count_without_gradients_too(tiny, tokens, whole, used, gate, kernels, request):
    if kernels == "triton":
        request.getfixturevalue("triton")
    config = dataclasses.replace(CONFIG, gate=gate, layers=[1])
    routed, ids = route(tiny("llama"), config, tokens(4, 16)), tokens(2, 13)
    with torch.no_grad():
        torch.testing.assert_close(routed(ids).logits, whole(lambda: routed(ids).logits), atol=1e-5, rtol=1e-5)
    assert len(used) == 1


def test_triton_reads_no_weights_of_heads_that_nobody_chose(tiny, tokens, used, triton):
    config = RoutingConfig(target="attention", k_heads=1, router="static", layers=[1])
    routed, ids = route(tiny("llama"), config, tokens(4, 16)), tokens(2, 9)
    with torch.no_grad():
        before = [routed(ids).logits, routed(ids[:, :1]).logits]  # a prompt, and two tokens
        heads = routed_modules(routed, RoutedHeads)["L1.attn"]
        for i in (~heads.routes(torch.zeros(1, heads.shape.d)).chosen[0]).nonzero().flatten().tolist():
            heads.attention.q_proj.weight[6 * i : 6 * i + 6] = torch.nan
            heads.out.weight[:, 6 * i : 6 * i + 6] = torch.nan
        after = [routed(ids).logits, routed(ids[:, :1]).logits]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) and len(used) == 4


def test_triton_leaves_other_choices_and_short_passes_whole(tiny, tokens, used, triton, monkeypatch):
    """What others choose may be of unequal numbers; between few tokens and FEWEST nothing is saved."""
    routed = route(tiny("llama"), CONFIG, tokens(4, 16))
    monkeypatch.setattr(head_slots, "FEWEST", 30)
    with torch.no_grad():
        with choose_by(routed, {place: lambda x, routes: routes.chosen for place in routed_modules(routed)}):
            routed(tokens(1, 9))
        routed(tokens(1, 20))
    routed(tokens(1, 9))  # with gradients
    assert not used
    with torch.no_grad():
        routed(tokens(1, 9))
        routed(tokens(2, 15))
    assert len(used) == 6


def test_slots_by_hand():
    """Four heads in two groups; token 0 chose heads 1 and 2, token 1 heads 0 and 2."""
    slots = slots_of(torch.tensor([[False, True, True, False], [True, False, True, False]]), 2)
    assert slots.s == 2 and slots.bounds == [0, 1, 2, 4, 4]
    assert slots.tokens.tolist() == [1, 0, 0, 1] and slots.place.tolist() == [1, 2, 0, 3]
    assert slots.gates(torch.arange(8.0).view(2, 4)).tolist() == [[1, 2], [4, 6]]
    assert slots_of(torch.tensor([[True, True, True, False], [True, False, True, False]]), 2) is None
    assert slots_of(torch.zeros(2, 4, dtype=torch.bool), 2) is None


def test_choices_of_unequal_numbers_are_executed_whole(tiny, tokens, whole, used):
    routed, ids = route(tiny("llama"), CONFIG, tokens(4, 16)), tokens(1, 9)
    uneven = torch.tensor([True, True, True, False])
    with choose_by(routed, {place: lambda x, _: uneven.expand(len(x), 4) for place in routed_modules(routed)}):
        found = routed(ids).logits
        assert not used and torch.equal(found, whole(lambda: routed(ids).logits))


def test_what_slots_cannot_serve_is_computed_whole(tiny, tokens, used, monkeypatch):
    ids = tokens(1, 9)
    for name in ("gpt_neo", "gpt2", "gpt_neox"):  # every head has keys of its own
        route(tiny(name), CONFIG, tokens(4, 16))(ids)
    routed = route(tiny("llama"), CONFIG, tokens(4, 16))
    handle = find_attentions(routed)[0].attention.q_proj.register_forward_hook(lambda *_: None)
    routed(ids)
    assert len(used) == 2
    handle.remove()
    routed.set_attn_implementation("eager")
    assert routed(ids, output_attentions=True).attentions[0].shape == (1, 4, 9, 9) and len(used) == 2
    routed.set_attn_implementation("sdpa")
    monkeypatch.setattr(head_slots, "FEWEST", 10)
    routed(ids)
    assert len(used) == 2
