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
def _rows_table(a, rows, index):
    """The addresses of the rows of index, in the order of `far_apart`, and of what is fetched after the end."""
    count = index.shape[0]
    table = np.empty(count + ROWS, np.int64)
    for j in range(count):
        table[j] = rows + index[far_apart(j, count)] * a[ROW]
    table[count:] = rows
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
        lanes, u = to_lanes(a[loops.X] + 4 * d * t, d, size), np.empty(count, np.float32)
        table = _rows_table(a, a[loops.W_IN], index)
        dot_rows_at(table.ctypes.data, count, lanes.ctypes.data, d, u.ctypes.data, size)
        for j in range(count):
            at = far_apart(j, count)
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
        h, factors = carray(floats(a[H]), (n, f))[t, low:high], np.empty(count, np.float32)
        for j in range(count):
            factors[j] = h[far_apart(j, count)]
        table, total = _rows_table(a, a[loops.W_OUT], index), np.zeros(d, np.float32)
        add_rows_at(table.ctypes.data, count, factors.ctypes.data, d, total.ctypes.data, size)
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
