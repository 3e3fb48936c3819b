"""Gate-selected neurons for many tokens: each block of rows stays in the second cache while all tokens pass.

Tokens choose apart, so that together they need nearly all rows, and a library would multiply by all of them. A product
with a row in the second cache takes twice as long as one in a library's tiles, so skipping pays below half of the rows.

Shapes: n tokens, d model, f neurons.
"""

import numpy as np
from numba import carray
from numba.extending import register_jitable

from slms.kernels.cpu import loops
from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.gate_choice import INDEX, K_OUT, OUT_ROW, ROW, H
from slms.kernels.cpu.gate_loops import choose
from slms.kernels.cpu.gate_twice import keep_best
from slms.kernels.cpu.gathered import NEAR, dots_near, sums_near
from slms.kernels.cpu.memory import floats, integers, keep, numbers, stay_apart
from slms.kernels.cpu.pointwise import activate

TOKENS = 256  # at a time, which bounds the memory for their activations
BLOCK = 384 << 10  # bytes of rows; 150 to 900 KB take equally long where the second cache has 1 MB (docs/log.md)


@register_jitable
def _name_block(index, count, low, end, rows, apart, table):
    """Name the rows of a token's neurons from index[low] on that are below `end`; the last tile is filled up.

    It returns behind which of its `count` neurons they end.
    """
    high = low
    while high < count and index[high] < end:
        table[high - low] = rows + index[high] * apart
        high += 1
    for j in range(high - low, (high - low + NEAR - 1) // NEAR * NEAR):
        table[j] = table[0]
    return high


@register_jitable
def block_ups(a):
    """Write H of INDEX."""
    stay_apart()
    n, d, f = a[loops.N], a[loops.D], a[loops.OFFSETS + a[loops.P]]
    index, h = carray(integers(a[INDEX]), (n, f + 1)), carray(floats(a[H]), (n, f))
    gates, bias = carray(floats(a[loops.GATES]), (n, f)), numbers(a[loops.B_IN], f, 4)
    table, u, begin = np.empty(f + NEAR, np.int64), np.empty(f + NEAR, np.float32), np.zeros(n, np.int64)
    block = max(1, BLOCK // (4 * d + 1))
    for first in range(0, f, block):
        for t in range(n):
            low = begin[t]
            high = _name_block(index[t], index[t, f], low, first + block, a[loops.W_IN], a[ROW], table)
            for j in range(0, high - low, NEAR):
                at = table.ctypes.data + 8 * j
                dots_near(at, at, a[loops.X] + 4 * d * t, d, u.ctypes.data + 4 * j)
            for j in range(high - low):
                i = index[t, low + j]
                h[t, low + j] = (u[j] + bias[i] if bias.shape[0] > 0 else u[j]) * gates[t, i]
            begin[t] = high
    keep(table, u)


@register_jitable
def block_downs(a):
    """Write Y from H and INDEX."""
    stay_apart()
    n, d, f = a[loops.N], a[loops.D], a[loops.OFFSETS + a[loops.P]]
    index, h = carray(integers(a[INDEX]), (n, f + 1)), carray(floats(a[H]), (n, f))
    table, factors, begin = np.empty(f + NEAR, np.int64), np.empty(f + NEAR, np.float32), np.zeros(n, np.int64)
    carray(floats(a[loops.Y]), (n * d,))[:] = 0
    block = max(1, BLOCK // (4 * d + 1))
    for first in range(0, f, block):
        for t in range(n):
            low = begin[t]
            high = _name_block(index[t], index[t, f], low, first + block, a[loops.W_OUT], a[OUT_ROW], table)
            factors[: high - low] = h[t, low:high]
            factors[high - low : high - low + NEAR] = 0
            for j in range(0, high - low, NEAR):
                at = table.ctypes.data + 8 * j
                sums_near(at, at, factors.ctypes.data + 4 * j, d, a[loops.Y] + 4 * d * t)
            begin[t] = high
    keep(table, factors)


@njit
def blocks_loop(a, thread, threads):
    """Compute this thread's share of the tokens, in float32; GATES [n, f] holds them before their activation."""
    n, d, f = a[loops.N], a[loops.D], a[loops.OFFSETS + a[loops.P]]
    few, last = a.copy(), n * (thread + 1) // threads
    index, h = np.empty(min(TOKENS, n) * (f + 1), np.int64), np.empty(min(TOKENS, n) * f, np.float32)
    few[INDEX], few[H] = index.ctypes.data, h.ctypes.data
    for t in range(n * thread // threads, last, TOKENS):
        few[loops.N] = min(TOKENS, last - t)
        few[loops.X], few[loops.Y] = a[loops.X] + 4 * d * t, a[loops.Y] + 4 * d * t
        few[loops.GATES] = a[loops.GATES] + 4 * f * t
        activate(carray(floats(few[loops.GATES]), (few[loops.N] * f,)), a[loops.CODE], few[loops.N] * f)
        choose(few)
        block_ups(few)
        if a[K_OUT] >= 0:
            keep_best(few)
        block_downs(few)
    keep(index, h)
