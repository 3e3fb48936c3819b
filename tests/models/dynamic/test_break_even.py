"""Where a rule was measured slower than dense, the dense MLP runs and is scored; a forced rule runs itself."""

import logging

import pytest
import torch

from slms.models.dynamic import RULES, Kept
from slms.models.dynamic.break_even import COMPILED, FEW, LIBRARY, MORE, plan
from tests.models.dynamic.conftest import D, F

KINDS = sorted({rule.kind for rule in RULES.values()})


def test_every_kind_has_densities_and_more_tokens_pay_less():
    for table in (COMPILED, LIBRARY):
        assert sorted(table) == KINDS
        assert all(0 <= known.more <= known.few <= 1 for known in table.values())


@pytest.mark.parametrize("kind", KINDS)
def test_plan(kind, caplog):
    plan.cache_clear()
    for few in (True, False):
        least = COMPILED[kind].few if few else COMPILED[kind].more
        for density in (0.01, 0.25, 0.5, 0.75, 0.95, 1.0):
            assert plan(kind, density, few, "cpu", True).dense == (density >= least)
    assert plan(kind, 1.0, True, "cuda", False).dense
    why = plan(kind, 0.95, True, "cuda", False)
    assert not why.dense and "cuda is not measured" in why.why
    with caplog.at_level(logging.INFO, "slms.models.dynamic.break_even"):
        found = [plan(kind, 0.97, True, "cpu", True) for _ in range(2)]
    assert found[0].why == f"break-even density {COMPILED[kind].few:g} for up to {FEW} tokens"
    assert [found[0].why in record.message for record in caplog.records] == [True], "logged once"


def cases(rule):
    """Numbers of tokens, with a density at which they run the rule and one at which they run dense."""
    known = COMPILED[rule.kind]
    for n, least in ((1, known.few), (FEW, known.few), (FEW + 1, known.more), (MORE, known.more)):
        yield n, (least - 0.05 if least > 0.05 else None), (least if least < 1 else None)


@pytest.mark.parametrize("name", [name for name in RULES if name != "griffin"])
def test_what_runs(name, gated_weights, x):
    mlp = RULES[name](gated_weights, x)
    for n, below, at in cases(RULES[name]):
        tokens = x[0, :n, None]
        for density, dense in ((below, False), (at, True)):
            if density is None:
                continue
            mlp.density = max(density, 0.05)
            mlp.masking = True
            ruled = mlp(tokens)
            mlp.masking = False
            assert mlp.plan(n).dense == dense
            wanted = mlp.dense(tokens) if dense else ruled
            torch.testing.assert_close(mlp(tokens), wanted, rtol=1e-4, atol=1e-4)
            mlp.force(True)
            assert not mlp.plan(n).dense
            torch.testing.assert_close(mlp(tokens), ruled, rtol=1e-4, atol=1e-4)
            mlp.force(False)


@pytest.mark.parametrize("name", RULES)
def test_scored_as_executed_is_what_one_token_runs(name, gated_weights, tokens, x):
    mlp = RULES[name](gated_weights, x)
    seen = []
    mlp.observe = seen.append
    for density in (0.3, 0.95):
        mlp.density, mlp.masking, mlp.with_prompt = density, True, True
        mlp.as_executed = False
        ruled = mlp(tokens)
        mlp.as_executed = True
        scored = mlp(tokens)
        if mlp.plan().dense:
            assert torch.equal(scored, mlp.dense(tokens)) and seen[-1] == Kept(1.0, 1.0)
            assert density == 0.95 and not torch.allclose(ruled, scored, atol=1e-4)
        else:
            assert torch.equal(scored, ruled) and seen[-1].neurons < 1
        mlp.masking = mlp.with_prompt = False


def test_what_is_not_one_compiled_call_has_its_own_densities(gated_weights, x):
    """Up to 4 tokens share a density only where one compiled call runs them."""
    half = gated_weights._replace(**{k: v.bfloat16() for k, v in gated_weights._asdict().items() if torch.is_tensor(v)})
    mlp = RULES["cats"](half, x.bfloat16())
    for density, dense in ((0.3, False), (0.5, True)):
        mlp.density = density
        assert mlp.compiled() is None and mlp.plan().dense == dense and mlp.plan(2).dense
        token = x[:1, :1].bfloat16()
        assert torch.equal(mlp(token), mlp.dense(token)) == dense
        assert torch.equal(mlp(x[:2, :1].bfloat16()), mlp.dense(x[:2, :1].bfloat16()))


def test_a_dense_run_reads_every_row(gated_weights, x):
    assert x.shape[-1] == D
    mlp = RULES["oracle"](gated_weights, x)
    mlp.density = 0.95
    assert mlp.compiled().held.down.least == float("-inf") and len(mlp.compiled().held.W_out) == F
    mlp.force(True)
    assert mlp.compiled().held.down.most == 19
