"""Each rule against its definition, one token and one neuron at a time; that it skips; that it costs what it says."""

import math

import pytest
import torch

from slms.models.dynamic import RULES, DynamicMLP
from slms.models.dynamic.mlp import FEW
from tests.models.dynamic.conftest import make

ACT = {
    "gelu_new": lambda a: 0.5 * a * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))),
    "silu": lambda a: a / (1 + math.exp(-a)),
}


def numbers(tensor):
    return None if tensor is None else tensor.double().tolist()


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


def activations(w, x):
    """gate branch (or None) and activation of every neuron for one token x, in Python numbers."""
    act, W_in, W_gate = ACT[w.activation], numbers(w.W_in), numbers(w.W_gate)
    b_in, b_gate = numbers(w.b_in) or [0.0] * len(W_in), numbers(w.b_gate) or [0.0] * len(W_in)
    up = [dot(x, row) + b for row, b in zip(W_in, b_in, strict=True)]
    if W_gate is None:
        return None, [act(u) for u in up]
    gate = [act(dot(x, row) + b) for row, b in zip(W_gate, b_gate, strict=True)]
    return gate, [g * u for g, u in zip(gate, up, strict=True)]


def calibrated(w, x, centre):
    """Activations of all calibration tokens, and their mean if skipped neurons leave it, else zeros."""
    h = [activations(w, token)[1] for token in x.flatten(0, 1).double().tolist()]
    return h, [centre * sum(column) / len(h) for column in zip(*h, strict=True)]


def output(w, h, mean, keep):
    """b_out + μ W_out + Σ_kept (h_i − μ_i) w_i"""
    b_out = numbers(w.b_out) or [0.0] * w.W_out.shape[1]
    y = list(b_out)
    for i, row in enumerate(w.W_out.double().tolist()):
        value = h[i] if i in keep else mean[i]
        y = [a + value * b for a, b in zip(y, row, strict=True)]
    return y


def largest(scores, k):
    return set(sorted(range(len(scores)), key=lambda i: -scores[i])[:k])


def quantile(values, density):
    ordered = sorted(values)
    return ordered[round((1 - density) * len(ordered))]


def column_norms(W):
    return [math.sqrt(sum(a**2 for a in column)) for column in zip(*numbers(W), strict=True)]


def importance(w, h, mean):
    return [abs(a - m) * n for a, m, n in zip(h, mean, numbers(w.W_out.double().norm(dim=1)), strict=True)]


def slow(rule, w, x, tokens, density, centre):
    """The rule's output [b, t, d] by its definition."""
    h_all, mean = calibrated(w, x, centre)
    k, out = round(density * len(mean)), []
    if rule == "cett":
        level = quantile([s for h in h_all for s in importance(w, h, mean)], density)
    if rule == "cats":
        level = quantile([abs(g) for t in x.flatten(0, 1).double().tolist() for g in activations(w, t)[0]], density)
    if rule == "static":
        scores = [sum(s**2 for s in column) for column in zip(*(importance(w, h, mean) for h in h_all), strict=True)]
    for sequence in tokens.double().tolist():
        hs, rows = [activations(w, t)[1] for t in sequence], []
        half = len(hs) // 2
        used = [0.0] * len(mean)
        for h in hs[:half]:
            length = math.sqrt(sum((a - m) ** 2 for a, m in zip(h, mean, strict=True)))
            used = [u + ((a - m) / length) ** 2 for u, a, m in zip(used, h, mean, strict=True)]
        for place, (token, h) in enumerate(zip(sequence, hs, strict=True)):
            keep = {
                "oracle": lambda h=h: largest(importance(w, h, mean), k),
                "cett": lambda h=h: {i for i, s in enumerate(importance(w, h, mean)) if s >= level},
                "cats": lambda t=token: {i for i, g in enumerate(activations(w, t)[0]) if abs(g) >= level},
                "static": lambda: largest(scores, k),
                "griffin": lambda p=place, u=used, s=half: set(range(len(mean))) if p < s else largest(u, k),
            }[rule]()
            rows.append(output(w, h, mean, keep))
        out.append(rows)
    return torch.tensor(out)


def masked(mlp, x):
    mlp.masking = True
    y = mlp(x)
    mlp.masking = False
    return y


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


def by_matrix(w, token, keep):
    """Activations where each branch reads only what keep[name](inputs) says, and what is kept of them in turn."""
    branches = {"gate": w._replace(W_in=w.W_gate, b_in=w.b_gate), "up": w} if w.W_gate is not None else {"up": w}
    sums = {}
    for name, branch in branches.items():
        cut = [a if i in keep[name](token) else 0.0 for i, a in enumerate(token)]
        plain = branch._replace(W_gate=None, activation="none")
        sums[name] = [
            dot(cut, row) + b
            for row, b in zip(numbers(plain.W_in), numbers(plain.b_in) or [0.0] * len(plain.W_in), strict=True)
        ]
    act = ACT[w.activation]
    gates = [act(g) for g in sums["gate"]] if "gate" in sums else [1.0] * len(sums["up"])
    h = [g * (u if "gate" in sums else act(u)) for g, u in zip(gates, sums["up"], strict=True)]
    return h, keep["down"](h)


@pytest.mark.parametrize("rule", ["teal", "wina"])
def test_rules_of_inputs(rule, weights, x, tokens):
    """Each matrix reads its own share of its inputs: above its threshold (teal), or the largest by norm (wina)."""
    mlp, w = RULES[rule](weights, x), weights
    shares = {"gate": 0.5, "up": 0.7, "down": 0.4} if mlp.gated else {"up": 0.5, "down": 0.4}
    mlp.share_out(shares)
    h_all, zeros = calibrated(weights, x, False)
    flat = [abs(a) for t in x.flatten(0, 1).double().tolist() for a in t]
    samples = {"gate": flat, "up": flat, "down": [abs(a) for h in h_all for a in h]}
    matrices = {"gate": w.W_gate, "up": w.W_in, "down": w.W_out.T}

    def keeper(name):
        if rule == "teal":
            level = quantile(samples[name], shares[name])
            return lambda v: {i for i, a in enumerate(v) if abs(a) >= level}
        norms = column_norms(matrices[name])
        k = int(shares[name] * len(norms) + 1e-9)
        return lambda v: largest([abs(a) * c for a, c in zip(v, norms, strict=True)], k)

    keep = {name: keeper(name) for name in shares}
    wanted = []
    for token in tokens.flatten(0, 1).double().tolist():
        h, chosen = by_matrix(weights, token, keep)
        wanted.append(output(weights, h, zeros, chosen))
    wanted = torch.tensor(wanted).view(tokens.shape)
    torch.testing.assert_close(masked(mlp, tokens), wanted, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_teal_leaves_means_where_it_is_centred(weights, x, tokens):
    """Inputs of both projections below the quantile of their calibration magnitudes are replaced by their means."""
    mlp = RULES["teal"](weights, x, True)
    mlp.density = 0.4
    h_all, mean = calibrated(weights, x, True)
    x_mean = x.flatten(0, 1).double().mean(0).tolist()
    flat = x.flatten(0, 1).double().tolist()
    x_level = quantile([abs(a - m) for t in flat for a, m in zip(t, x_mean, strict=True)], 0.4)
    h_level = quantile([abs(a - m) for h in h_all for a, m in zip(h, mean, strict=True)], 0.4)
    wanted = []
    for token in tokens.flatten(0, 1).double().tolist():
        cut = [a if abs(a - m) >= x_level else m for a, m in zip(token, x_mean, strict=True)]
        h = activations(weights, cut)[1]
        wanted.append(output(weights, h, mean, {i for i, a in enumerate(h) if abs(a - mean[i]) >= h_level}))
    wanted = torch.tensor(wanted).view(tokens.shape)
    torch.testing.assert_close(masked(mlp, tokens), wanted, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_shares_of_matrices_are_greedy(gated_weights, x):
    """Each of TEAL's steps is the one of least error on the last quarter; the nearest row of its table is taken."""
    for rule in ("teal", "wina"):
        mlp = RULES[rule](gated_weights, x)
        type(mlp).spread([mlp], 0.5)
        assert sum(mlp.shares.values()) / 3 == pytest.approx(0.5, abs=0.01)
        got, dense = mlp.shares, mlp.dense(x)[:, 12:]
        error = {}
        for row in mlp.steps[1:3]:
            mlp.share_out({name: 1 - s for name, s in row.items()})
            error[tuple(row.values())] = (masked(mlp, x)[:, 12:] - dense).norm(dim=1).mean().item()
        for before, after in zip(mlp.steps[:2], mlp.steps[1:3], strict=True):
            for name in mlp.matrices:
                other = before | {name: before[name] + 0.05}
                mlp.share_out({name: 1 - s for name, s in other.items()})
                this = (masked(mlp, x)[:, 12:] - dense).norm(dim=1).mean().item()
                assert error[tuple(after.values())] <= this + 1e-6
        mlp.share_out(got)
        assert len({round(share, 2) for share in got.values()}) > 1, "the matrices do not share alike"


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
