"""Each rule against its definition, one token and one neuron at a time; that it skips; that it costs what it says."""

import pytest
import torch

from slms.models.dynamic import RULES, DynamicMLP
from slms.models.dynamic.break_even import FEW
from tests.models.dynamic.conftest import make
from tests.models.dynamic.definitions import (
    masked,
    slow,
)


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("rule", ["oracle", "cett", "static", "griffin"])
def test_definition(rule, weights, x, tokens, centre):
    mlp = RULES[rule](weights, x, centre)
    for density in (0.25, 0.5, 1.0):
        mlp.density = density
        torch.testing.assert_close(
            masked(mlp, tokens),
            slow(rule, weights, x, tokens, density, centre) if density < 1 else mlp.dense(tokens),
            rtol=1e-4,
            atol=1e-4,
            check_dtype=False,
        )


@pytest.mark.parametrize("centre", [False, True])
def test_cats(gated_weights, x, tokens, centre):
    mlp = RULES["cats"](gated_weights, x, centre)
    mlp.density = 0.3
    wanted = slow("cats", gated_weights, x, tokens, 0.3, centre)
    torch.testing.assert_close(masked(mlp, tokens), wanted, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_cett_is_the_same_in_every_layer(x):
    layers = [RULES["cett"](make(True), x), RULES["cett"](make(False), x), RULES["cett"](make(True), 3 * x)]
    RULES["cett"].spread(layers, 0.5)
    assert sum(mlp.density for mlp in layers) / 3 == pytest.approx(0.5, abs=0.01)
    found = []
    for mlp in layers:
        h = mlp.tokens
        skipped = h * (mlp.importance(h) < mlp.threshold) @ mlp.weights.W_out
        found.append((skipped.norm(dim=1) / (h @ mlp.weights.W_out).norm(dim=1)).mean().item())
    assert max(found) - min(found) < 0.01 and len({round(mlp.density, 3) for mlp in layers}) == 3


def test_a_prompt_stays_dense(weights, x, tokens):
    """The first half of a sequence does, under rules that execute prompts dense; shares are those of the rest."""
    half, seen = tokens.shape[1] // 2, []
    for rule in names(weights):
        mlp = RULES[rule](weights, x)
        mlp.density, mlp.observe = 0.3, seen.append
        whole, all_positions = masked(mlp, tokens), seen[-1]
        mlp.with_prompt = True
        got = masked(mlp, tokens)
        torch.testing.assert_close(got[:, half:], whole[:, half:])
        if rule == "static":
            torch.testing.assert_close(got, whole)
        else:
            torch.testing.assert_close(got[:, :half], mlp.dense(tokens[:, :half]), rtol=1e-4, atol=1e-4)
        if rule != "griffin":
            mlp.with_prompt = False
            masked(mlp, tokens[:, half:])
            assert seen[-2].neurons == pytest.approx(seen[-1].neurons) and all_positions.neurons < 1


def test_low_rank_at_full_rank_is_the_oracle(weights, x, tokens, monkeypatch):
    """A predictor of full rank predicts exactly; the set is then the oracle's. At rank 1 it is another."""
    import slms.models.dynamic.neuron_rules as rules

    oracle, low = RULES["oracle"](weights, x), RULES["low_rank"](weights, x)
    exact, fit = rules.fit_low_rank, rules.fit_low_rank
    monkeypatch.setattr(rules, "fit_low_rank", lambda W, x, rank: exact(W, x, 6, ridge=0.0))
    full = RULES["low_rank"](weights, x)
    assert fit is exact and low.rank == 1
    for mlp in (oracle, low, full):
        mlp.density = 0.3
    torch.testing.assert_close(masked(full, tokens), masked(oracle, tokens), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(masked(low, tokens), masked(oracle, tokens), atol=1e-3)


def names(weights):
    return [rule for rule in RULES if rule != "cats" or weights.W_gate is not None]


def test_at_density_1_every_rule_is_the_dense_mlp(weights, x, tokens):
    for rule in names(weights):
        for centre in (True, False):
            mlp = RULES[rule](weights, x, centre)
            torch.testing.assert_close(masked(mlp, tokens), mlp.dense(tokens), rtol=1e-4, atol=1e-4)


def execute(mlp: DynamicMLP, tokens):
    """All positions as they are run in decoding: after the prompt one by one."""
    half = tokens.shape[1] // 2
    first = mlp(tokens[:, :half])
    return torch.cat([first, *(mlp(tokens[:, i : i + 1]) for i in range(half, tokens.shape[1]))], 1)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_executing_is_masking(weights, x, tokens, batch, centre):
    tokens = tokens[:batch]
    assert tokens[:, 0].numel() and batch <= FEW
    for rule in names(weights):
        mlp = RULES[rule](weights, x, centre)
        mlp.density = 0.3
        half = tokens.shape[1] // 2
        torch.testing.assert_close(execute(mlp, tokens)[:, half:], masked(mlp, tokens)[:, half:], rtol=1e-4, atol=1e-4)


def test_many_tokens_run_dense_under_sets_of_single_tokens(weights, x, tokens):
    for rule in names(weights):
        mlp = RULES[rule](weights, x)
        mlp.density = 0.3
        many = torch.cat([tokens] * 2, 1)
        executed = mlp(many)
        if mlp.dense_prompts:
            torch.testing.assert_close(executed, mlp.dense(many), rtol=1e-5, atol=1e-5)
        else:
            torch.testing.assert_close(executed, masked(mlp, many), rtol=1e-4, atol=1e-4)


def test_skipped_neurons_are_never_read(weights, x, tokens):
    """The rows of neurons that no token keeps are NaN, in every matrix that the rule says it skips."""
    token = tokens[:1, :1]
    for rule in names(weights):
        mlp = RULES[rule](weights._replace(W_out=weights.W_out.clone(), W_in=weights.W_in.clone()), x)
        mlp.density = 0.3
        if rule == "griffin":
            mlp(tokens[:1, :4])
        clean = mlp(token)
        if rule == "teal":
            mlp.share_out(dict.fromkeys(mlp.matrices, 0.5))
            clean = mlp(token)
            unread = ~mlp.choose("up", token[0, 0])
            assert unread.any()
            mlp.W_in_t[unread] = float("nan")
            if mlp.gated:
                mlp.W_gate_t[unread] = float("nan")
        elif rule == "wina":
            for W, name in ((mlp.W_in_t, "up"), (getattr(mlp, "W_gate_t", None), "gate")):
                if W is not None:
                    W[~mlp.choose(name, token[0, 0])] = float("nan")
        elif rule in ("griffin", "static"):
            assert len(mlp.compact.W_in) == 6  # the others are not even there
            mlp.weights.W_out.fill_(float("nan"))
            mlp.weights.W_in.fill_(float("nan"))
        else:
            from slms.models.weights import neurons

            unread = ~mlp.keep(token, neurons(weights, token))[0, 0]
            mlp.weights.W_out[unread] = float("nan")
            if rule in ("low_rank", "cats"):
                mlp.weights.W_in[unread] = float("nan")
        assert torch.equal(mlp(token), clean) and not clean.isnan().any(), rule


def test_flops_and_observed_shares(weights, x, tokens):
    d, f = 6, 20
    one, matrices = 2 * d * f, 2 + (weights.W_gate is not None)
    seen = []
    for rule in names(weights):
        mlp = RULES[rule](weights, x)
        mlp.density, mlp.observe = 0.5, seen.append
        masked(mlp, x)
        kept = seen[-1]
        # under teal, activations of sparsified inputs are smaller than those of calibration: the share is measured
        assert kept.neurons == pytest.approx(0.5, abs=0.06 if rule == "teal" else 0.02), rule
        assert kept.inputs == pytest.approx(0.5 if rule in ("teal", "wina") else 1.0, abs=0.02)
        wanted = {
            "oracle": one * (matrices - 1 + kept.neurons),
            "cett": one * (matrices - 1 + kept.neurons),
            "cats": one * (1 + 2 * kept.neurons),
            "teal": one * ((matrices - 1) * kept.inputs + kept.neurons),
            "wina": one * ((matrices - 1) * kept.inputs + kept.neurons),
            "low_rank": one * matrices * kept.neurons + 2 * (d + (matrices - 1) * f),
            "griffin": one * matrices * kept.neurons,
            "static": one * matrices * kept.neurons,
        }
        assert mlp.flops(kept) == pytest.approx(wanted[rule]), rule


def test_nan_propagates(weights, x, tokens):
    tokens = tokens[:1, :1].clone()
    tokens[0, 0, 2] = float("nan")
    for rule in names(weights):
        mlp = RULES[rule](weights, x)
        mlp.density = 0.5
        if rule != "griffin":
            assert mlp(tokens).isnan().any(), rule


def test_refusals(weights, x):
    mlp = RULES["oracle"](weights, x)
    for density in (0.0, 1.5):
        with pytest.raises(ValueError, match="`density` is"):
            mlp.density = density
    if weights.W_gate is None:
        with pytest.raises(ValueError, match="`rule` is cats; it needs a gated MLP"):
            RULES["cats"](weights, x)
