"""The compiled decode step and the cache that it grows."""

import pickle

import pytest
import torch

from slms.kernels.cpu import decoder
from slms.models.transformers_internals import CACHE
from tests.models.decoding import pair

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def test_the_cache_is_new_with_every_token(tiny, tokens, ran):
    """As transformers' own: what it held stays as it was, also if it is cropped and goes on otherwise."""
    stock, fast = pair(tiny, tokens, "llama")
    ids, others = tokens(1, 9), tokens(1, 9) + 1
    caches = [model(ids[:, :4], use_cache=True)[CACHE] for model in (stock, fast)]
    for step in range(3):
        before = [[states for layer in cache.layers for states in (layer.keys, layer.values)] for cache in caches]
        copies = [states.clone() for states in before[1]]
        for tokens_of in (ids, others):
            outs = [
                m(tokens_of[:, [step]], use_cache=True, **{CACHE: c})
                for m, c in zip((stock, fast), caches, strict=True)
            ]
            torch.testing.assert_close(outs[1].logits, outs[0].logits, atol=1e-5, rtol=1e-5)
            assert all(torch.equal(*both) for both in zip(before[1], copies, strict=True))
            for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
                torch.testing.assert_close((ours.keys, ours.values), (theirs.keys, theirs.values), atol=1e-5, rtol=1e-5)
            if tokens_of is ids:
                for cache in caches:
                    cache.crop(-1)
    assert ran == [True] * 6
    ran.clear()
    assert len(pickle.dumps(caches[1])) < 1.1 * len(pickle.dumps(caches[0]))  # no more than it holds
    for cache in caches:  # layers of different lengths are transformers' own business
        layer = cache.layers[1]
        layer.keys, layer.values = layer.keys[..., :-1, :], layer.values[..., :-1, :]
    outs = [m(ids[:, :1], use_cache=True, **{CACHE: c}).logits for m, c in zip((stock, fast), caches, strict=True)]
    torch.testing.assert_close(outs[1], outs[0])
    assert ran == [False]


@torch.no_grad()
@pytest.mark.parametrize("what", ["fewer heads", "smaller heads", "meta", "reset", "update"])
def test_a_cache_that_is_not_the_models_is_left_to_transformers(tiny, tokens, ran, what):
    stock, fast = pair(tiny, tokens, "llama")
    ids = tokens(1, 6)
    caches = [model(ids[:, :5], use_cache=True)[CACHE] for model in (stock, fast)]
    changes = {
        "fewer heads": lambda states: states[:, :1].contiguous(),
        "smaller heads": lambda states: states[..., :2].contiguous(),
        "meta": lambda states: states.to("meta"),
    }
    for cache in caches:
        layer = cache.layers[1]
        if what in changes:
            layer.keys, layer.values = changes[what](layer.keys), changes[what](layer.values)
        elif what == "reset":
            layer.reset()
        else:
            layer.update = lambda keys, values, *rest, one=layer, **more: type(one).update(one, 2 * keys, values)

    def run(model, cache):
        return model(ids[:, 5:], use_cache=True, **{CACHE: cache}).logits

    if what in changes:
        for both in zip((stock, fast), caches, strict=True):
            with pytest.raises(RuntimeError):
                run(*both)
    else:
        torch.testing.assert_close(run(fast, caches[1]), run(stock, caches[0]), atol=1e-5, rtol=1e-5)
    assert not any(ran)


@torch.no_grad()
def test_an_interrupted_token_leaves_the_cache_as_it_was(tiny, tokens, monkeypatch):
    _, fast = pair(tiny, tokens, "llama", "router")
    cache = fast(tokens(1, 5), use_cache=True)[CACHE]
    before = [states.clone() for layer in cache.layers for states in (layer.keys, layer.values)]

    def interrupted(loop):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoder, "layers_loop", lambda *arguments: interrupted(arguments))
    with pytest.raises(KeyboardInterrupt):
        fast(tokens(1, 1), use_cache=True, **{CACHE: cache})
    after = [states for layer in cache.layers for states in (layer.keys, layer.values)]
    assert all(torch.equal(*both) for both in zip(before, after, strict=True))
