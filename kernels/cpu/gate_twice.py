"""The second choice of gate-selected neurons for few tokens: all ups, then the downs that their activations keep.

Shapes: n tokens, d model, f neurons, p units.
"""

import numpy as np
from numba import carray
from numba.extending import register_jitable

from slms.kernels.cpu import loops
from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.gate_choice import (
    INDEX,
    K_OUT,
    LEAST_OUT,
    OUT_ROW,
    OUT_SCALE,
    POSITIVE,
    ROW,
    H,
    choose_at_least,
    choose_units,
)
from slms.kernels.cpu.gathered import ROWS, add_rows_at, dot_rows_at
from slms.kernels.cpu.memory import float_as_bits, floats, integers, keep, numbers
from slms.kernels.cpu.single import add_lanes, to_lanes


@register_jitable
def worth_bits(h, index, scale, bits):
    """Write what |h| · scale of the neurons that index names is, as bits in their order, NaN the largest."""
    for j in range(h.shape[0]):
        bits[j] = np.int32(float_as_bits(h[j] * scale[index[j]]) & POSITIVE)


@register_jitable
def choose_again(a, bits, chosen):
    """Write chosen [p] uint8: what LEAST_OUT or K_OUT keeps by the bits of what neurons are worth."""
    if a[LEAST_OUT]:
        choose_at_least(bits, a[LEAST_OUT], chosen)
    else:
        choose_units(bits, a[K_OUT], 0, False, chosen)


@register_jitable
def far_apart(j, count):
    """Which of `count` rows is the j-th to be read: the rows of a tile lie far apart, as in `single`."""
    whole = count // ROWS * ROWS
    return j // ROWS + j % ROWS * (whole // ROWS) if j < whole else j


@register_jitable
def rows_table(rows, apart, index):
    """The addresses of the rows of index, in the order of `far_apart`, and of what is fetched after the end.

    The last row stands for those that a tile lacks: a row by itself takes as long as four of a tile.
    """
    count = index.shape[0]
    whole = (count + ROWS - 1) // ROWS * ROWS
    table = np.empty(whole + ROWS, np.int64)
    for j in range(whole):
        table[j] = rows + index[min(far_apart(j, whole), count - 1)] * apart
    table[whole:] = rows
    return table


@register_jitable
def form_ups(a, thread, threads):
    """Write H of this thread's share of INDEX."""
    n, d, size, f = a[loops.N], a[loops.D], a[loops.SIZE], a[loops.OFFSETS + a[loops.P]]
    bias = numbers(a[loops.B_IN], f, size)
    for t in range(n):
        chosen = carray(integers(a[INDEX]), (n, f + 1))[t]
        low, high = chosen[f] * thread // threads, chosen[f] * (thread + 1) // threads
        index, count = chosen[low:high], high - low
        gates, h = carray(floats(a[loops.GATES]), (n, f))[t], carray(floats(a[H]), (n, f))[t]
        lanes, table = to_lanes(a[loops.X] + 4 * d * t, d, size), rows_table(a[loops.W_IN], a[ROW], index)
        whole = table.shape[0] - ROWS
        u = np.empty(whole, np.float32)
        dot_rows_at(table.ctypes.data, whole, lanes.ctypes.data, d, u.ctypes.data, size)
        for j in range(whole):
            at = far_apart(j, whole)
            if at < count:
                i = index[at]
                h[low + at] = (u[j] + bias[i] if bias.shape[0] > 0 else u[j]) * gates[i]
        keep(lanes, table, u)


@register_jitable
def keep_best(a):
    """Leave in INDEX and H of each token what LEAST_OUT or K_OUT keeps by |H| · OUT_SCALE, unless it is whole."""
    n, f, k = a[loops.N], a[loops.OFFSETS + a[loops.P]], a[K_OUT]
    scale, bits, chosen = carray(floats(a[OUT_SCALE]), (f,)), np.empty(f, np.int32), np.empty(f, np.uint8)
    for t in range(n):
        index, h = carray(integers(a[INDEX]), (n, f + 1))[t], carray(floats(a[H]), (n, f))[t]
        count = index[f]
        if (a[LEAST_OUT] == 0 and count <= k) or (count == f and a[loops.K] < f):
            continue
        worth_bits(h[:count], index, scale, bits)
        choose_again(a, bits[:count], chosen)
        kept = 0
        for j in range(count):
            index[kept], h[kept] = index[j], h[j]
            kept += int(chosen[j])
        index[f] = kept


@register_jitable
def add_downs(a, thread, threads):
    """Add to Y [threads, n, d] the rows of W_OUT of this thread's share of INDEX, times H."""
    n, d, size, f = a[loops.N], a[loops.D], a[loops.SIZE], a[loops.OFFSETS + a[loops.P]]
    for t in range(n):
        chosen = carray(integers(a[INDEX]), (n, f + 1))[t]
        low, high = chosen[f] * thread // threads, chosen[f] * (thread + 1) // threads
        index, count = chosen[low:high], high - low
        h, total = carray(floats(a[H]), (n, f))[t, low:high], np.zeros(d, np.float32)
        table = rows_table(a[loops.W_OUT], a[OUT_ROW], index)
        whole = table.shape[0] - ROWS
        factors = np.empty(whole, np.float32)
        for j in range(whole):
            at = far_apart(j, whole)
            factors[j] = h[at] if at < count else np.float32(0)
        add_rows_at(table.ctypes.data, whole, factors.ctypes.data, d, total.ctypes.data, size)
        add_lanes(a[loops.Y] + (thread * n + t) * d * 4, total, size)
        keep(table, total, factors)


@njit
def ups_loop(a, thread, threads):
    form_ups(a, thread, threads)


@njit
def keep_loop(a):
    keep_best(a)


@njit
def downs_loop(a, thread, threads):
    add_downs(a, thread, threads)
