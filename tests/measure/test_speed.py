"""Timing in turns times what it claims to, and a model is as fast as itself."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slms.kernels.timing import Spread
from slms.measure.speed import Pair, all_mlps, compare_speed, one_more_token
from slms.models.anatomy import find_mlps

PROMPT = torch.randint(40, (1, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def test_a_step_repeats_the_token_after_the_prompt(model):
    step = one_more_token(model, PROMPT)
    wanted = model(torch.cat([PROMPT, PROMPT[:, -1:]], 1)).logits[:, -1:]
    for _ in range(3):  # the cache does not grow
        torch.testing.assert_close(step().logits, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mlps_run_on_what_the_prompt_gives_them(model):
    seen = []
    hooks = [mlp.register_forward_hook(lambda _, x, y: seen.append((x[0], y))) for mlp in find_mlps(model).values()]
    model(PROMPT)
    for hook in hooks:
        hook.remove()
    for outputs, last in (
        (all_mlps(model, PROMPT, False)(), slice(None)),
        (all_mlps(model, PROMPT, True)(), slice(-1, None)),
    ):
        assert len(outputs) == 2
        for y, (_, wanted) in zip(outputs, seen, strict=True):
            torch.testing.assert_close(y, wanted[:, last], rtol=1e-5, atol=1e-5)


def test_every_pair_is_timed(model):
    speed = compare_speed(model, model, PROMPT, 0.02)
    for pair in speed:
        assert 0 < pair.dense.p20 <= pair.dense.p80 and 0 < pair.other.p20 <= pair.other.p80
    assert speed.prefill.dense.p20 > speed.prefill_mlps.dense.p20  # the MLPs are a part of the model


def test_speedup_is_of_20th_percentiles():
    assert Pair(Spread(8.0, 9.0, 10.0), Spread(2.0, 9.0, 99.0)).speedup == 4.0
