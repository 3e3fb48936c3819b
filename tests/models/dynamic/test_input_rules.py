"""TEAL and WINA against their definitions: what each matrix reads, and how shares are found."""

import pytest
import torch

from slms.models.dynamic import RULES
from tests.models.dynamic.definitions import (
    ACT,
    activations,
    calibrated,
    column_norms,
    dot,
    largest,
    masked,
    numbers,
    output,
    quantile,
)


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
