"""SDPA for GPT-Neo against transformers' own eager class, which is the oracle."""

import copy
import pickle
import warnings

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoModel, GPTNeoSelfAttention

from slms.models.speedups import prepare
from slms.models.transformers_internals import CACHE, SDPASelfAttention, UnpaddedGPTNeoModel, compute_again


@pytest.fixture
def pair():
    """The same weights eagerly and prepared: 4 layers, windows of 6."""

    def build(**changes):
        torch.manual_seed(0)
        config = GPTNeoConfig(
            **{
                "vocab_size": 50,
                "hidden_size": 32,
                "num_layers": 4,
                "num_heads": 8,
                "window_size": 6,
                "attention_types": [[["global", "local"], 2]],
                "max_position_embeddings": 64,
                "initializer_range": 0.2,
                "bos_token_id": 0,
                "eos_token_id": 1,
            }
            | changes
        )
        eager = GPTNeoForCausalLM(config).eval()
        return eager, prepare(copy.deepcopy(eager))

    return build


def ids(b, t, seed=0):
    return torch.randint(2, 50, (b, t), generator=torch.Generator().manual_seed(seed))


def test_prepare_leaves_the_argument_of_deepcopy_and_parameters_alone(pair):
    eager, fast = pair()
    assert type(eager.transformer.h[0].attn.attention) is GPTNeoSelfAttention
    assert type(fast.transformer.h[0].attn.attention) is SDPASelfAttention
    assert type(fast.transformer) is UnpaddedGPTNeoModel and type(fast) is GPTNeoForCausalLM
    assert fast.config.to_dict() == eager.config.to_dict()
    assert list(fast.state_dict()) == list(eager.state_dict())
    assert type(GPTNeoForCausalLM(fast.config).transformer) is GPTNeoModel


@pytest.mark.parametrize("t", [1, 2, 5, 6, 7, 20, 64])
def test_logits_equal_eager_within_and_beyond_the_window(pair, t):
    eager, fast = pair()
    torch.testing.assert_close(fast(ids(3, t)).logits, eager(ids(3, t)).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_output_equals_eager_to_1e_6(pair, layer):
    eager, fast = (m.transformer.h[layer].attn.attention for m in pair())
    x = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fast(x)[0], eager(x)[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("t", [5, 20])
def test_gradients_equal_eager(pair, t):
    eager, fast = pair()
    upstream = torch.randn(2, t, 50, generator=torch.Generator().manual_seed(1))
    for model in (eager, fast):
        model(ids(2, t)).logits.backward(upstream)
    for (name, a), b in zip(eager.named_parameters(), fast.parameters(), strict=True):
        assert (b.grad - a.grad).abs().max() <= 1e-5 * a.grad.abs().max(), name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_honoured_and_pads_poison_nothing(pair, side, dtype):
    eager, fast = pair()
    mask = torch.ones(3, 15, dtype=torch.long)
    for row, pads in enumerate((0, 4, 11)):
        mask[row, :pads] = 0
    mask = mask if side == "left" else mask.flip(1)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected, got = (m(ids(3, 15), attention_mask=mask).logits.float() for m in (eager, fast))
    assert got.isfinite().all()
    real = mask.bool()
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.15, "rtol": 0.05}
    torch.testing.assert_close(got[real], expected[real], **tolerance)
    unpadded = fast(ids(3, 15)[1:2][:, real[1]], position_ids=torch.arange(15)[real[1]][None]).logits
    if dtype == torch.float32:
        torch.testing.assert_close(got[1][real[1]], unpadded[0], atol=1e-5, rtol=1e-5)


def test_packed_position_ids_are_kept_apart_as_transformers_does(pair):
    eager, fast = pair()
    position_ids = torch.cat([torch.arange(6), torch.arange(9)])[None]
    packed = fast(ids(1, 15), position_ids=position_ids, use_cache=False).logits
    torch.testing.assert_close(
        packed, eager(ids(1, 15), position_ids=position_ids, use_cache=False).logits, atol=1e-5, rtol=1e-5
    )
    alone = fast(ids(1, 15)[:, 6:], use_cache=False).logits
    torch.testing.assert_close(packed[:, 6:], alone, atol=1e-5, rtol=1e-5)


def test_cache_token_by_token_and_in_chunks_equals_one_forward(pair):
    eager, fast = pair()
    whole = eager(ids(2, 20)).logits
    for chunks in ([1] * 20, [7, 1, 12], [19, 1]):
        past, parts = None, []
        for part in ids(2, 20).split(chunks, dim=1):
            out = fast(part, use_cache=True, **{CACHE: past})
            past = out[CACHE]
            parts.append(out.logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_arguments_pass_by_position_as_transformers_takes_them(pair):
    eager, fast = pair()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    for arguments in ((ids(2, 9),), (ids(2, 9), None), (ids(2, 9), None, mask)):
        expected, got = (model.transformer(*arguments)[0][:, 4:] for model in (eager, fast))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_transformers_calls_the_fast_attention_and_an_unknown_argument_reaches_its_own(pair, monkeypatch):
    """A renamed argument would silently leave the fast path, or be lost in it: both fail here."""
    _, fast = pair()
    slow = []
    monkeypatch.setattr(GPTNeoSelfAttention, "forward", lambda self, *args, **kwargs: slow.append((args, kwargs)))
    past = fast(ids(2, 9), use_cache=True)[CACHE]
    fast(ids(2, 1), use_cache=True, attention_mask=torch.ones(2, 10, dtype=torch.long), **{CACHE: past})
    assert not slow and past.get_seq_length() == 10
    x, attention = torch.zeros(1, 3, 32), fast.transformer.h[0].attn.attention
    attention(x, None, later=1)
    assert slow == [((x, None), {"later": 1})]


def test_greedy_generation_equals_eager_with_left_padding(pair):
    eager, fast = pair()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "attention_mask": mask}
    assert torch.equal(fast.generate(ids(2, 9), **options), eager.generate(ids(2, 9), **options))


def test_attention_weights_are_still_returned(pair):
    eager, fast = pair()
    expected, got = (m(ids(2, 9), output_attentions=True) for m in (eager, fast))
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for a, b in zip(got.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_dropout_acts_in_training_only(pair):
    _, fast = pair(attention_dropout=0.5)
    assert torch.equal(fast(ids(1, 9)).logits, fast(ids(1, 9)).logits)
    fast.train()
    assert not torch.equal(fast(ids(1, 9)).logits, fast(ids(1, 9)).logits)


def test_a_prepared_model_pickles(pair):
    _, fast = pair()
    again = pickle.loads(pickle.dumps(fast))
    assert torch.equal(again(ids(2, 9)).logits, fast(ids(2, 9)).logits)


def test_layers_compute_again_without_a_warning():
    config = GPTNeoConfig(hidden_size=8, num_layers=2, num_heads=2, attention_types=[[["global"], 2]], vocab_size=9)
    model = GPTNeoForCausalLM(config).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compute_again(model)
    assert model.is_gradient_checkpointing
