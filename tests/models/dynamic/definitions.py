"""What each rule of neurons gives by its definition, one token and one neuron at a time, in Python numbers."""

import math

import torch

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
