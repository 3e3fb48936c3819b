"""The router in compiled loops: scores, the k largest, gates; `kernels.choose` is the same in PyTorch.

Shapes: n tokens, d model, h router's hidden units, p pathways.
"""

import numpy as np
from numba import carray
from numba.extending import register_jitable

from slms.kernels.cpu import loops
from slms.kernels.cpu.gate_choice import choose_units, ordered_bits
from slms.kernels.cpu.loops import NOTHING
from slms.kernels.cpu.memory import floats, keep, numbers
from slms.kernels.cpu.operands import aligned, pack_some, spare_rows, up, whole, whole_rows
from slms.kernels.cpu.pointwise import exp, sigmoid
from slms.kernels.cpu.single import dot_one, to_lanes
from slms.kernels.router import SIGMOID, SOFTMAX

BLOCK = 64  # tokens whose scores are formed at a time


@register_jitable
def _scores_of_one(a, x, out):
    """The scores of a single token."""
    d, size, width = a[loops.D], a[loops.SIZE], a[loops.WIDTH]
    lanes = to_lanes(x, d, size)
    if width > 0:
        hidden, bias = np.empty(width, np.float32), numbers(a[loops.ROUTER_B_IN], width, size)
        dot_one(a[loops.ROUTER_IN], width, lanes.ctypes.data, d, hidden.ctypes.data, size)
        for j in range(width):
            value = hidden[j] + bias[j]
            hidden[j] = np.float32(0) if value < 0 else value
        lanes, d = to_lanes(hidden.ctypes.data, width, size), width
        keep(hidden)
    dot_one(a[loops.ROUTER_OUT], a[loops.P], lanes.ctypes.data, d, out, size)
    keep(lanes)


@register_jitable
def scores(a, start, count, out):
    """out[p · stride + t] = score p of token start + t, without the output's bias; returns the stride. X is float32."""
    stride, d, size = loops.padded(count), a[loops.D], a[loops.SIZE]
    if count == 1:
        _scores_of_one(a, a[loops.X] + start * 4 * d, out)
        return 1
    tokens = np.empty(stride, np.int64)
    for t in range(stride):
        tokens[t] = a[loops.X] + (start + min(t, count - 1)) * 4 * d
    width = a[loops.WIDTH]
    rows = np.empty(loops.padded(max(width, a[loops.P])), np.int64)
    features = np.empty((stride, width), np.float32)
    if width > 0:
        hidden = np.empty((loops.padded(width), stride), np.float32)
        loops.name_neurons(rows, a[loops.ROUTER_IN], size * d, 0, width, 0)
        loops.dot_rows(rows.ctypes.data, tokens.ctypes.data, width, count, d, hidden.ctypes.data, stride, size, NOTHING)
        bias = numbers(a[loops.ROUTER_B_IN], width, size)
        for t in range(stride):
            for j in range(width):
                value = hidden[j, t] + bias[j]
                features[t, j] = np.float32(0) if value < 0 else value
            tokens[t] = features.ctypes.data + t * 4 * width
        d = width
    loops.name_neurons(rows, a[loops.ROUTER_OUT], size * d, 0, a[loops.P], 0)
    loops.dot_rows(rows.ctypes.data, tokens.ctypes.data, a[loops.P], count, d, out, stride, size, NOTHING)
    keep(rows, tokens, features)
    return stride


@register_jitable
def tile_scores(a, start, count, out):
    """Like `scores`, for at most 64 tokens in bfloat16, with the first layer on tile registers."""
    d, p, width, wide, stride = a[loops.D], a[loops.P], a[loops.WIDTH], whole(a[loops.D]), 64
    n_rows, first = (width, a[loops.ROUTER_IN]) if width > 0 else (p, a[loops.ROUTER_OUT])
    inputs, zeros, padding = (
        np.empty(stride * wide + 32, np.uint16),
        np.zeros(d, np.uint16),
        np.empty(16 * wide, np.uint16),
    )
    copy, results = spare_rows(n_rows, d), np.zeros((whole(n_rows), stride), np.float32)
    rows, x = whole_rows(first, 0, n_rows, d, copy), aligned(inputs)
    pack_some(a[loops.X], np.arange(start, start + count), d, zeros.ctypes.data, padding.ctypes.data, x)
    for j in range(0, n_rows, 32):
        for t in range(0, count, 32):
            groups = 2 if count - t > 16 else 1
            up(rows + 2 * j * wide, x + 2 * t * wide, groups, wide, results.ctypes.data + 4 * (j * stride + t), stride)
    scores = carray(floats(out), (loops.padded(p), stride))
    if width > 0:
        bias, last = numbers(a[loops.ROUTER_B_IN], width, 2), np.zeros(loops.padded(p) * width, np.float32)
        weights = numbers(a[loops.ROUTER_OUT], p * width, 2)
        for i in range(p * width):
            last[i] = weights[i]
        for j in range(width):
            for t in range(stride):
                value = results[j, t] + bias[j]
                results[j, t] = np.float32(0) if value < 0 else value
        for q in range(p):
            for t in range(stride):
                scores[q, t] = 0
        out_rows, hidden = np.empty(loops.padded(p), np.int64), np.empty(loops.padded(width), np.int64)
        loops.name_neurons(out_rows, out, 4 * stride, 0, loops.padded(p), 0)
        loops.name_neurons(hidden, results.ctypes.data, 4 * stride, 0, width, 0)
        factors = last.ctypes.data
        loops.sum_rows(out_rows.ctypes.data, hidden.ctypes.data, p, width, stride, factors, 1, width, 4, NOTHING)
        keep(out_rows, hidden, last)
    else:
        for q in range(p):
            for t in range(stride):
                scores[q, t] = results[q, t]
    keep(inputs, zeros, padding, copy, results)
    return stride


@register_jitable
def _begin(a, chosen, y):
    """Write the output's bias and, if they are given, the mean outputs of the pathways that are not chosen."""
    (n, p), d = chosen.shape, a[loops.D]
    bias = numbers(a[loops.B_OUT], d, a[loops.SIZE])
    means = numbers(a[loops.MEAN], p * d, a[loops.SIZE])
    for t in range(n):
        for i in range(d):
            y[t, i] = bias[i] if bias.shape[0] > 0 else np.float32(0)
        for q in range(p if means.shape[0] > 0 else 0):
            if not chosen[t, q]:
                for i in range(d):
                    y[t, i] += means[q * d + i]


@register_jitable
def _choose_one(a, scores, stride, bias, b_out, share, chosen, gates):
    """Write chosen and gates [p] of one token; scores [p · stride] are without the output's bias."""
    p, k, kind, n_shared = chosen.shape[0], a[loops.K], a[loops.GATE], a[loops.N_SHARED]
    s, bits = np.empty(p, np.float32), np.empty(p, np.int32)
    for q in range(p):
        s[q] = scores[q * stride] + b_out[q]
        bits[q] = ordered_bits(s[q] + bias[q])  # NaN is the largest, so a token of NaNs shows it
    choose_units(bits, k, n_shared, False, chosen)
    largest, total = np.float32(-np.inf), np.float32(0)
    for q in range(n_shared):
        gates[q] = 1
    for q in range(n_shared, p):
        largest = s[q] if chosen[q] and s[q] > largest else largest
    for q in range(n_shared, p):
        value = exp(s[q] - largest) if kind == SOFTMAX else sigmoid(s[q]) if kind == SIGMOID else np.float32(1)
        gates[q] = value if chosen[q] else np.float32(0)
        total += gates[q]
    for q in range(n_shared, p):
        if chosen[q]:
            value = gates[q] * (k - n_shared) / total if kind == SOFTMAX else gates[q]
            gates[q] = value if share == 1 else 1 + share * (value - 1)
    keep(s, bits)


@register_jitable
def _constants(a):
    """The bias of the choice and of the scores [p], and how much of its value a gate has."""
    bias, b_out = (
        numbers(a[loops.BIAS], a[loops.P], a[loops.SIZE]),
        numbers(a[loops.ROUTER_B_OUT], a[loops.P], a[loops.SIZE]),
    )
    return bias, b_out, numbers(a[loops.RAMP], 1, a[loops.SIZE])[0] if a[loops.RAMP] else np.float32(1)


@register_jitable
def choose(a, form, low, chosen, gates, y):
    """Write chosen and gates [t, p] for t tokens from `low` on, and the initial values of their output y [t, d].

    form: the function that computes a block's scores, `scores` or `tile_scores`.
    """
    n, p = chosen.shape
    bias, b_out, share = _constants(a)
    table = np.empty(loops.padded(p) * (1 if n == 1 else BLOCK), np.float32)
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        stride = form(a, low + start, count, table.ctypes.data)
        for i in range(count):
            _choose_one(a, table[i:], stride, bias, b_out, share, chosen[start + i], gates[start + i])
    _begin(a, chosen, y)
    keep(table)


@register_jitable
def choose_for_token(a, chosen, gates, y):
    """The same for the only token, chosen and gates [1, p], y [1, d], in float32, without what several tokens need."""
    bias, b_out, share = _constants(a)
    table = np.empty(a[loops.P], np.float32)
    _scores_of_one(a, a[loops.X], table.ctypes.data)
    _choose_one(a, table, 1, bias, b_out, share, chosen[0], gates[0])
    _begin(a, chosen, y)
    keep(table)
