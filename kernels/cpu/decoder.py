"""The layers of a Llama-like decoder for one new token of one sequence, in one compiled call, in float32.

The small operations around a layer's products take PyTorch longer than some of the products, and its own matrix-vector
products read memory at half the speed of `single`.

Shapes: d model, h query heads, g key heads, e head size, s keys, f neurons.
"""

import numpy as np
from numba import carray
from numba.extending import register_jitable

from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.fused import fused_token
from slms.kernels.cpu.gate_loops import gate_loop
from slms.kernels.cpu.loops import N, X, Y
from slms.kernels.cpu.memory import integers, keep, stay_apart
from slms.kernels.cpu.pointwise import activate, exp
from slms.kernels.cpu.rows import arguments_at
from slms.kernels.cpu.rule_loops import ARGUMENTS, rule_loop
from slms.kernels.cpu.rule_loops import X as RULE_X
from slms.kernels.cpu.rule_loops import Y as RULE_Y
from slms.kernels.cpu.single import dot_one, multiply, sum_one, vector

# A layer's row of the table: numbers of rows, kind, and addresses; 0 stands for what it has not.
KIND, F, NORM, Q, B_Q, KEY, B_KEY, VALUE, B_VALUE, Q_NORM, K_NORM, OUT, B_OUT, NORM_2 = range(14)
GATE, B_GATE, UP, B_UP, DOWN, B_DOWN, CHOSEN = range(14, 21)
# Keys and values, written; and as they were, without the new token, with the distances between their heads in numbers.
KEYS, VALUES, OLD_KEYS, OLD_VALUES, KEYS_GAP, VALUES_GAP = range(21, 27)
COLUMNS = 27
# What the MLP is; OTHER is computed by the caller, between two calls.
DENSE, BY_GATE, BY_RULE, BY_ROUTER, OTHER = range(5)
# Of the model: sizes and addresses. COS, SIN: [e]; CONSTANTS: the norms' epsilon and the scale of scores.
WIDTH, HEADS, KEY_HEADS, SIZE, LENGTH, CODE, COS, SIN, CONSTANTS, STREAM, NORMED, LAST_NORM = range(12)
SETTINGS = 12


@register_jitable
def normalise(x, weight, epsilon, y):
    """y = weight · x / √(mean(x²) + ε)"""
    stay_apart()
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    factor = np.float32(1) / np.sqrt(total / np.float32(x.shape[0]) + epsilon)
    for i in range(x.shape[0]):
        y[i] = weight[i] * (x[i] * factor)


@register_jitable
def turn(head, cos, sin):
    """Rotate one head's numbers [e] by their position, each with the one half a head away."""
    stay_apart()
    half = head.shape[0] // 2
    for i in range(half):
        left, right = head[i], head[half + i]
        head[i] = left * cos[i] - right * sin[i]
        head[half + i] = right * cos[half + i] + left * sin[half + i]


@register_jitable
def attend(q, keys, values, scale, scores, y):
    """y [e] = softmax(scale · q kᵀ) v for addresses of keys and values [s, e]; scores [s] is written over."""
    stay_apart()
    e, s = q.shape[0], scores.shape[0]
    dot_one(keys, s, q.ctypes.data, e, scores.ctypes.data, 4)
    top = np.float32(-np.inf)
    for i in range(s):
        scores[i] *= scale
        top = max(top, scores[i])
    total = np.float32(0)
    for i in range(s):
        scores[i] = exp(scores[i] - top)
        total += scores[i]
    for i in range(s):
        scores[i] /= total
    y[:] = 0
    sum_one(values, s, scores.ctypes.data, e, y.ctypes.data, 4)


@register_jitable
def append(old, last, new, s):
    """Write one head's s − 1 old vectors and its last one [e] to `new`; both are addresses."""
    stay_apart()
    before, after = vector(old, (s - 1) * last.shape[0]), vector(new, s * last.shape[0])
    for i in range(before.shape[0]):
        after[i] = before[i]
    for i in range(last.shape[0]):
        after[before.shape[0] + i] = last[i]


@register_jitable
def add_attention(m, layer, x, normed):
    """x [d] += the layer's attention; its keys and values become the old ones and the new token's."""
    stay_apart()
    d, h, g, e, s = m[WIDTH], m[HEADS], m[KEY_HEADS], m[SIZE], m[LENGTH]
    constants, cos, sin = vector(m[CONSTANTS], 2), vector(m[COS], e), vector(m[SIN], e)
    q, k, v = np.empty(h * e, np.float32), np.empty(g * e, np.float32), np.empty(g * e, np.float32)
    y, scores, out = np.empty(h * e, np.float32), np.empty(s, np.float32), np.empty(d, np.float32)
    normalise(x, vector(layer[NORM], d), constants[0], normed)
    multiply(layer[Q], layer[B_Q], normed, q)
    multiply(layer[KEY], layer[B_KEY], normed, k)
    multiply(layer[VALUE], layer[B_VALUE], normed, v)
    for i in range(h + g):
        j, all_of = (i, q) if i < h else (i - h, k)
        head, weight = all_of[j * e : (j + 1) * e], layer[Q_NORM] if i < h else layer[K_NORM]
        if weight != 0:
            normalise(head, vector(weight, e), constants[0], head)
        turn(head, cos, sin)
    for i in range(g):
        append(layer[OLD_KEYS] + 4 * i * layer[KEYS_GAP], k[i * e : (i + 1) * e], layer[KEYS] + 4 * e * s * i, s)
        append(layer[OLD_VALUES] + 4 * i * layer[VALUES_GAP], v[i * e : (i + 1) * e], layer[VALUES] + 4 * e * s * i, s)
    for i in range(h):
        mine, there = slice(i * e, (i + 1) * e), 4 * e * s * (i * g // h)
        attend(q[mine], layer[KEYS] + there, layer[VALUES] + there, constants[1], scores, y[mine])
    multiply(layer[OUT], layer[B_OUT], y, out)
    for i in range(d):
        x[i] += out[i]
    keep(q, k, v, y, scores, out)


@register_jitable
def add_mlp(m, layer, x, normed):
    """x [d] += the layer's MLP of normed [d]."""
    stay_apart()
    d, f = m[WIDTH], layer[F]
    y = np.empty(d, np.float32)
    if layer[KIND] == BY_GATE:
        a = arguments_at(integers(layer[CHOSEN])).copy()
        a[N], a[X], a[Y] = 1, normed.ctypes.data, y.ctypes.data
        gate_loop(a)
        if layer[B_DOWN] != 0:
            bias = vector(layer[B_DOWN], d)
            for i in range(d):
                y[i] += bias[i]
    elif layer[KIND] == BY_ROUTER:
        a = arguments_at(integers(layer[CHOSEN])).copy()
        a[N], a[X], a[Y] = 1, normed.ctypes.data, y.ctypes.data
        fused_token(a)
    elif layer[KIND] == BY_RULE:
        rule = carray(integers(layer[CHOSEN]), (ARGUMENTS,)).copy()
        rule[RULE_X], rule[RULE_Y] = normed.ctypes.data, y.ctypes.data
        rule_loop(rule)
    else:
        gate, up = np.empty(f, np.float32), np.empty(f, np.float32)
        multiply(layer[GATE], layer[B_GATE], normed, gate)
        activate(gate, m[CODE], f)
        multiply(layer[UP], layer[B_UP], normed, up)
        for i in range(f):
            up[i] *= gate[i]
        multiply(layer[DOWN], layer[B_DOWN], up, y)
        keep(gate, up)
    for i in range(d):
        x[i] += y[i]
    keep(y)


@njit
def layers_loop(m, table, first):
    """Run layers from the first on, from STREAM [d] to STREAM, and return the first whose MLP the caller must add.

    Of that layer everything else is done, and NORMED [d] is the input of its MLP. Behind the last layer NORMED is the
    normalised output, and the number of layers is returned.
    """
    d = m[WIDTH]
    x, normed, epsilon = vector(m[STREAM], d), vector(m[NORMED], d), vector(m[CONSTANTS], 2)[0]
    for i in range(first, table.shape[0]):
        layer = table[i]
        add_attention(m, layer, x, normed)
        normalise(x, vector(layer[NORM_2], d), epsilon, normed)
        if layer[KIND] == OTHER:
            return i
        add_mlp(m, layer, x, normed)
    normalise(x, vector(m[LAST_NORM], d), epsilon, normed)
    return table.shape[0]


@njit
def product_loop(weight, bias, x, d, y, rows):
    """y [rows] = W x + b, all by address."""
    multiply(weight, bias, vector(x, d), vector(y, rows))
