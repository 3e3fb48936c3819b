"""Pools from the definition, token by token; no choice depends on later tokens, with a cache or without."""

import copy
import pickle

import pytest
import torch

import slms
from slms.lit.moves import Gains
from slms.measure.redundancy import within
from slms.models.base import init_base
from slms.models.families import FAMILIES
from slms.models.pools import Pass, PoolLayer
from slms.models.routed import choose_by, draw_pool, record_routes, routed_modules
from slms.models.speedups import prepare
from slms.models.transformers_internals import CACHE
from slms.routing import RoutingConfig
from tests.models.decoding import gradients_twice

P, K, POOL, BLOCK, END = 8, 2, 3, 4, 0
CONFIG = RoutingConfig(n_pathways=P, k=K, layers=[1, 2], router="linear", gate="unit", pool=POOL, pool_block=BLOCK)


def definition(ids: list[int], real: list[bool], probs: torch.Tensor, size: int = POOL) -> list[list[bool]]:
    """What each token may choose: the pathways with the largest sums over the document's earlier blocks."""
    found, document = [], []
    for token, counts, row in zip(ids, real, probs.double(), strict=True):
        at = len(document) // BLOCK
        sums = sum(document[: at * BLOCK], torch.zeros(P, dtype=torch.float64))
        best = sorted(range(P), key=lambda p: (-float(sums[p]), p))[:size]
        found.append([at == 0 or p in best for p in range(P)])
        if counts:
            document = [] if token == END else [*document, row]
    return found


@pytest.mark.parametrize("cut", [(30,), (9, 1, 1, 12, 7), (4, 4, 22)])
@pytest.mark.parametrize("padded", [False, True])
def test_pools_from_the_definition_in_one_pass_or_several(cut, padded):
    generator = torch.Generator().manual_seed(0)
    b, t = 3, 30
    ids = torch.randint(1, 9, (b, t), generator=generator)
    ids[0, 13], ids[1, 7], ids[1, 8] = END, END, END  # documents end inside a block, at its end, and at once
    real = torch.ones(b, t, dtype=torch.bool)
    if padded:
        real[0, :6], real[2, :17] = False, False
    probs = torch.rand(b, t, P, generator=generator)
    found, past = [], PoolLayer()
    for part in zip(*(x.split(cut, 1) for x in (ids, real, probs)), strict=True):
        made = Pass(part[1], part[0] == END, BLOCK, past)
        again = [made.allowed("L1.mlp", part[2].flatten(0, 1), POOL).view(b, -1, P) for _ in range(2)]
        assert torch.equal(*again)  # as recomputation in the backward pass asks for
        found.append(again[0])
        past.position, past.sums = made.position, made.sums
    found = torch.cat(found, 1)
    for row in range(b):
        expected = definition(ids[row].tolist(), real[row].tolist(), probs[row])
        for token in range(t):
            assert not real[row, token] or found[row, token].tolist() == expected[token], (row, token)


def pooled(family: str, tiny, tokens, **fields) -> tuple:
    model = tiny(family)
    calibration = tokens(4, 16)
    return model, slms.route(model, RoutingConfig(**CONFIG.to_dict() | fields), calibration).eval()


def test_choices_stay_in_the_pools_of_the_definition(tiny, tokens, family):
    model, routed = pooled(family, tiny, tokens)
    ids = tokens(2, 20, seed=3)
    with torch.no_grad(), record_routes(routed) as routes:
        routed(ids)
    end = routed.config.eos_token_id
    few = 0
    for found in routes.values():
        chosen, probs = (x.view(2, 20, P) for x in (found.chosen, found.probs))
        assert (chosen.sum(-1) == K).all()
        for row in range(2):
            marked = [END if token == end else 1 for token in ids[row].tolist()]
            allowed = torch.tensor(definition(marked, [True] * 20, probs[row]))
            assert not (chosen[row] & ~allowed).any()
            few += int((~allowed).sum())
            scores = found.scores.view(2, 20, P)[row].masked_fill(~allowed, -torch.inf)
            assert torch.equal(chosen[row], scores >= scores.topk(K).values[:, -1:])
    assert few
    whole = slms.route(model, RoutingConfig(**CONFIG.to_dict() | {"pool": P, "k": P}), tokens(4, 16))
    expected = model(ids).logits
    torch.testing.assert_close(whole(ids).logits, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


def test_the_retention_of_all_pathways_is_the_model_itself(tiny, tokens):
    _, routed = pooled("llama", tiny, tokens)
    ids, everything = tokens(2, 20, seed=3), torch.ones(P, dtype=torch.bool)
    kept = {place: lambda x, routes: within(routes.scores, routes.chosen, everything) for place in ("L1.mlp", "L2.mlp")}
    with torch.no_grad(), record_routes(routed):
        own = routed(ids).logits
        with choose_by(routed, kept):
            assert torch.equal(routed(ids).logits, own)
        fewer = torch.arange(P) < 4
        kept = {place: lambda x, routes: within(routes.scores, routes.chosen, fewer) for place in kept}
        with choose_by(routed, kept), record_routes(routed) as routes:
            routed(ids)
    assert all((found.chosen.sum(1) == K).all() and not found.chosen[:, 4:].any() for found in routes.values())


@pytest.mark.parametrize("at", [1, 7, 13])
def test_later_tokens_change_no_earlier_logit(tiny, tokens, family, at):
    """Bit for bit where each token is computed alone; kernels that sort tokens by pathway sum in another order."""
    _, routed = pooled(family, tiny, tokens, backend="reference")
    ids = tokens(2, 20, seed=3)
    other = torch.cat([ids[:, :at], tokens(2, 20 - at, seed=9)], 1)
    with torch.no_grad():
        assert torch.equal(routed(ids).logits[:, :at], routed(other).logits[:, :at])


def move_neurons(routed) -> None:
    """Put the neurons of every routed MLP into other pathways, as a run with `model.assignment` does."""
    generator = torch.Generator().manual_seed(0)
    for mlp in routed_modules(routed).values():
        gains, before = Gains(len(mlp.W_in), P), mlp.permutation.clone()
        gains.gain.copy_(torch.rand(gains.gain.shape, generator=generator))
        gains.reassign(mlp, torch.optim.AdamW(mlp.parameters()), least=0.0)
        assert not torch.equal(mlp.permutation, before)


CONTROLLED, NO_POOL = {"rule": "controlled"}, {"pool": None, "pool_block": None}
GENERATED = [(name, beams, {}, False) for name in FAMILIES for beams in (1, 3)]
GENERATED += [
    (name, beams, fields, moved)
    for fields, moved in ((CONTROLLED, False), (CONTROLLED, True), ({}, True), (NO_POOL, True))
    for name, beams in (("gpt_neo", 1), ("llama", 3), ("gemma2", 1))
]
GENERATED += [("qwen3", 1, {"target": "both", "k_heads": 1} | CONTROLLED, False)]


@pytest.mark.parametrize(("name", "beams", "fields", "moved"), GENERATED)
def test_a_cache_changes_nothing_batched_and_padded(tiny, tokens, name, beams, fields, moved):
    _, routed = pooled(name, tiny, tokens, **fields)
    ids = tokens(3, 11, seed=5)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[2, :7] = 0, 0
    options = {"max_new_tokens": 14, "do_sample": False, "num_beams": beams, "pad_token_id": 0, "eos_token_id": None}
    if moved:
        before = routed.generate(ids, attention_mask=mask, **options)  # what it prepared for these neurons is past
        move_neurons(routed)
        assert not torch.equal(routed.generate(ids, attention_mask=mask, **options), before)
    made = [routed.generate(ids, attention_mask=mask, use_cache=cache, **options) for cache in (True, False)]
    assert torch.equal(*made)
    alone = routed.generate(ids[:1, 4:], attention_mask=mask[:1, 4:], **options)
    assert torch.equal(made[0][:1, 4:], alone)


def test_stories_1m_goes_on_with_its_cache_token_by_token():
    """GPT-Neo as it is loaded, whose stack hides its arguments; logits with the cache are those of the whole text."""
    routed = prepare(slms.route(init_base("stories-1m"), CONFIG, torch.randint(3, 2000, (4, 32)))).eval()
    ids = torch.randint(3, 2000, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, kept, parts = routed(ids).logits, None, []
        for part in ids.split([9, 1, 1, 13], 1):
            out = routed(part, use_cache=True, **{CACHE: kept})
            kept = getattr(out, CACHE)
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    assert isinstance(kept.layers[-1], PoolLayer)
    with pytest.raises(ValueError, match=r"`routing.pool` is set; its sums cannot be cut back"):
        kept.layers[-1].crop(-1)
    with pytest.raises(ValueError, match=r"the attention mask must be None or \[sequences, positions\]"):
        routed(ids, attention_mask=torch.zeros(2, 1, 24, 24))


def test_a_range_is_drawn_in_training_and_its_low_end_evaluates(tiny, tokens, tmp_path):
    _, routed = pooled("gpt_neo", tiny, tokens, pool=[K, P])
    module = routed_modules(routed)["L1.mlp"]
    assert module.pool == K and "among 2 of the document" in str(routed)
    drawn = set()
    for step in range(40):
        draw_pool(routed, step)
        assert {m.drawn_pool for m in routed_modules(routed).values()} == {module.drawn_pool}
        drawn.add(module.train().pool)
    assert drawn == set(range(K, P + 1)) and module.eval().pool == K
    for same in (copy.deepcopy(routed), pickle.loads(pickle.dumps(routed))):
        ids = tokens(2, 20, seed=3)
        torch.testing.assert_close(same(ids).logits, routed(ids).logits)
    routed.save_pretrained(tmp_path)
    opened = slms.load_model(tmp_path).model
    torch.testing.assert_close(opened(ids).logits, routed(ids).logits)
    assert routed_modules(opened)["L1.mlp"].config.pool == [K, P]


def test_gradients_pass_through_recomputed_layers(tiny, tokens):
    _, routed = pooled("llama", tiny, tokens)
    ids = tokens(2, 20, seed=3)
    gradients = gradients_twice(routed, ids)
    torch.testing.assert_close(*gradients)
