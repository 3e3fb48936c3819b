"""The MLP of a training-free rule for one token in one compiled call, in float32.

It computes what the rule needs whole, chooses, and passes once over the chosen rows.

Shapes: d model, f neurons, q rank, r rows, c columns.
"""

import numpy as np
from numba.extending import register_jitable

from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.gate_choice import kth_largest, score_bits
from slms.kernels.cpu.gathered import ROWS, add_rows_at, dot_rows_at
from slms.kernels.cpu.memory import keep, stay_apart
from slms.kernels.cpu.pointwise import activate
from slms.kernels.cpu.single import multiply, vector

# What a rule chooses, and by what: neurons by the output's norm, by their gates, or by a low-rank prediction; inputs of
# each matrix.
BY_OUTPUT, BY_GATE, BY_PREDICTION, BY_INPUTS = range(4)
# A rule's arguments: numbers, then addresses; 0 stands for what it has not. By inputs, W_GATE and W_IN are [d, f].
KIND, D, F, CODE, RANK, X, Y, W_GATE, B_GATE, W_IN, B_IN, W_OUT, B_OUT, MEAN, X_MEAN = range(15)
NARROW, WIDE, SHIFT = range(15, 18)
# Of each choice (the gate's inputs, the up-projection's, the down-projection's): the address of the scores' scale, how
# many are kept (negative: all that reach LEAST), and the bits of the least score.
SCALE, COUNT, LEAST = 18, 21, 24
ARGUMENTS = 27
GATE, UP, DOWN = range(3)


@register_jitable
def _pick(v, a, which, index):
    """Write the places of the chosen numbers of v to index, in order; returns how many."""
    stay_apart()
    n, count, least = v.shape[0], a[COUNT + which], np.int32(a[LEAST + which])
    bits = np.empty(n, np.int32)
    score_bits(v, vector(a[SCALE + which], n), a[:0], bits)
    if count == 0:
        return 0
    equals, reached = np.int64(n), np.int32(0)
    if count > 0:
        least, reached = kth_largest(bits, np.int32(count))
        equals = count
        if reached > count:  # of equal scores the first ones are kept
            for i in range(n):
                equals -= int(bits[i] > least)
    kept = 0
    for i in range(n):
        index[kept] = i  # written over if i was not chosen; a branch would be guessed wrong half the time
        equal = int(bits[i] == least) * int(equals > 0)
        if count > 0 and reached > count:
            kept += int(bits[i] > least) + equal
            equals -= equal
        else:
            kept += int(bits[i] >= least)
    return kept


@register_jitable
def _apart(index, count, order, table, weight, c):
    """Order rows so that those read together lie far apart, and write their addresses, and ROWS more to fetch."""
    groups = count // ROWS
    for j in range(count):
        order[j] = index[j // ROWS + j % ROWS * groups if j < groups * ROWS else j]
        table[j] = weight + 4 * c * order[j]
    table[count : count + ROWS] = weight


@register_jitable
def _dot_rows(weight, bias, index, count, x, u):
    """u[i] = W[i] · x + b[i] for the chosen rows i of W [r, c]; u [r] stays as it is elsewhere."""
    stay_apart()
    c = x.shape[0]
    order, table, out = np.empty(count, np.int64), np.empty(count + ROWS, np.int64), np.empty(count, np.float32)
    _apart(index, count, order, table, weight, c)
    dot_rows_at(table.ctypes.data, count, x.ctypes.data, c, out.ctypes.data, 4)
    for j in range(count):
        u[order[j]] = out[j]
    if bias != 0:
        b = vector(bias, u.shape[0])
        for j in range(count):
            u[order[j]] += b[order[j]]
    keep(order, table, out)


@register_jitable
def _sum_rows(weight, bias, index, count, v, y):
    """y [c] = b + Σ v[i] W[i] over the chosen rows i of W [r, c]."""
    stay_apart()
    c = y.shape[0]
    order, table, factors = np.empty(count, np.int64), np.empty(count + ROWS, np.int64), np.empty(count, np.float32)
    _apart(index, count, order, table, weight, c)
    for j in range(count):
        factors[j] = v[order[j]]
    y[:] = 0
    if bias != 0:
        y[:] = vector(bias, c)
    add_rows_at(table.ctypes.data, count, factors.ctypes.data, c, y.ctypes.data, 4)
    keep(order, table, factors)


@register_jitable
def _activated(gate, up, code):
    """up = act(gate) · up, or act(up) where the gate is empty."""
    if gate.shape[0] == 0:
        activate(up, code, up.shape[0])
    else:
        activate(gate, code, gate.shape[0])
        for i in range(up.shape[0]):
            up[i] *= gate[i]


@register_jitable
def _predict(a, x, index):
    """Choose neurons by the importance of their predicted activations; returns how many."""
    stay_apart()
    f, gated = a[F], a[W_GATE] != 0
    inner, outer = np.empty(a[RANK], np.float32), np.empty(2 * f if gated else f, np.float32)
    multiply(a[NARROW], 0, x, inner)
    multiply(a[WIDE], a[SHIFT], inner, outer)
    _activated(outer[f:], outer[:f], a[CODE])
    mean = vector(a[MEAN], f)
    for i in range(f):
        outer[i] -= mean[i]
    count = _pick(outer[:f], a, DOWN, index)
    keep(inner, outer)
    return count


@njit
def rule_loop(a):
    """Y [d] = the output of the MLP for X [d], of what the rule chose."""
    kind, d, f = a[KIND], a[D], a[F]
    gated, x = a[W_GATE] != 0, vector(a[X], d)
    gate, up = np.empty(f if gated else 0, np.float32), np.empty(f, np.float32)
    index, count = np.empty(max(d, f), np.int64), 0
    if kind == BY_INPUTS:
        centred, mean = np.empty(d, np.float32), vector(a[X_MEAN], d)
        for i in range(d):
            centred[i] = x[i] - mean[i]
        if gated:
            count = _pick(centred, a, GATE, index)
            _sum_rows(a[W_GATE], a[B_GATE], index, count, centred, gate)
        count = _pick(centred, a, UP, index)
        _sum_rows(a[W_IN], a[B_IN], index, count, centred, up)
        _activated(gate, up, a[CODE])
        keep(centred)
    elif kind == BY_OUTPUT:
        if gated:
            multiply(a[W_GATE], a[B_GATE], x, gate)
        multiply(a[W_IN], a[B_IN], x, up)
        _activated(gate, up, a[CODE])
    elif kind == BY_GATE:
        multiply(a[W_GATE], a[B_GATE], x, gate)
        activate(gate, a[CODE], f)
        count = _pick(gate, a, DOWN, index)
        _dot_rows(a[W_IN], a[B_IN], index, count, x, up)
        for j in range(count):
            up[index[j]] *= gate[index[j]]
    else:
        count = _predict(a, x, index)
        if gated:
            gate[:] = 0
            _dot_rows(a[W_GATE], a[B_GATE], index, count, x, gate)
        up[:] = 0
        _dot_rows(a[W_IN], a[B_IN], index, count, x, up)
        _activated(gate, up, a[CODE])
    mean = vector(a[MEAN], f)
    for i in range(f):
        up[i] -= mean[i]
    if kind in (BY_OUTPUT, BY_INPUTS):
        count = _pick(up, a, DOWN, index)
    _sum_rows(a[W_OUT], a[B_OUT], index, count, up, vector(a[Y], d))
    keep(x, gate, up, index)


@njit
def rule_tokens_loop(a, n):
    """`rule_loop` for n tokens, X and Y [n, d], one after another."""
    a = a.copy()
    for _ in range(n):
        rule_loop(a)
        a[X] += 4 * a[D]
        a[Y] += 4 * a[D]
