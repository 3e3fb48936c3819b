"""The compiled loops of gate-selected neurons for few tokens: gates, choice, and one pass over the chosen rows.

Shapes: n tokens, d model, f neurons, p units.
"""

import numpy as np
from numba import carray
from numba.extending import register_jitable

from slms.kernels.cpu import loops
from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.gate_choice import (
    CODES_8,
    GATE_ROW,
    INDEX,
    K_OUT,
    LEAST,
    OUT_ROW,
    OUT_SCALE,
    POSITIVE,
    ROW,
    SCALE,
    SHARED,
    SINGLE,
    WHOLE,
    H,
    choose_at_least,
    choose_units,
    exceeds,
    score_bits,
)
from slms.kernels.cpu.gate_screen import screened_token
from slms.kernels.cpu.gate_twice import add_downs, choose_again, far_apart, form_ups, keep_best
from slms.kernels.cpu.gathered import (
    ROWS,
    dots_1,
    dots_1h,
    dots_n,
    dots_nh,
    sums_1,
    sums_1h,
    sums_n,
    sums_nh,
)
from slms.kernels.cpu.memory import (
    bytes_at,
    float_as_bits,
    floats,
    integers,
    keep,
    numbers,
    put,
    stay_apart,
    widen,
)
from slms.kernels.cpu.pointwise import activate
from slms.kernels.cpu.single import add_lanes, dot_spaced, to_lanes

BLOCK = 64  # rows of the gate matrix that tokens share


@register_jitable
def form_gates(a, thread, threads):
    """Write this thread's share of GATES, activated; a block of rows stays in the second cache for all tokens."""
    n, d, f, size = a[loops.N], a[loops.D], a[loops.OFFSETS + a[loops.P]], a[loops.SIZE]
    low, high = f * thread // threads, f * (thread + 1) // threads
    gates, bias, lanes = (
        carray(floats(a[loops.GATES]), (n, f)),
        numbers(a[loops.B_GATE], f, size),
        np.empty((n, d), np.float32),
    )
    for t in range(n):
        lanes[t] = to_lanes(a[loops.X] + 4 * d * t, d, size)
    block = BLOCK if n > 1 else f
    for first in range(low, high, block):
        few = min(block, high - first)
        for t in range(n):
            there = a[loops.GATES] + 4 * (t * f + first)
            rows, x = a[loops.W_GATE] + first * a[GATE_ROW], lanes.ctypes.data + 4 * d * t
            dot_spaced(rows, few, a[GATE_ROW], x, d, there, size)
    for t in range(n):
        loops.add_bias(gates[t, low:], bias, low, high - low, 1)
        activate(gates[t, low:], a[loops.CODE], high - low)
    keep(lanes)


@register_jitable
def choose_by(a, bits, whole, chosen):
    """Write chosen [p] uint8 by the scores' bits."""
    if a[LEAST] == 0 or whole:
        choose_units(bits, a[loops.K], a[SHARED], whole, chosen)
    else:
        choose_at_least(bits, a[LEAST], chosen)
        chosen[: a[SHARED]] = 1


@register_jitable
def choose(a):
    """Write INDEX, and how many units of each token."""
    n, p, f = a[loops.N], a[loops.P], a[loops.OFFSETS + a[loops.P]]
    gates, scale = carray(floats(a[loops.GATES]), (n, f)), carray(floats(a[SCALE]), (f,))
    offsets = a[loops.OFFSETS : loops.OFFSETS + (0 if a[SINGLE] else p + 1)]
    units = f if a[SINGLE] else p
    bits, chosen = np.empty(units, np.int32), np.empty(units, np.uint8)
    index = carray(integers(a[INDEX]), (n, f + 1))
    for t in range(n):
        whole = exceeds(gates[t], scale, a[WHOLE])
        score_bits(gates[t], scale, offsets, bits)
        choose_by(a, bits, whole, chosen)
        count = 0
        if a[SINGLE]:
            for i in range(f):
                index[t, count] = i  # written over if i was not chosen; a branch would be guessed wrong half the time
                count += int(chosen[i])
        else:
            for u in range(p):
                if chosen[u]:
                    for i in range(offsets[u], offsets[u + 1]):
                        index[t, count] = i
                        count += 1
        index[t, f] = count


@register_jitable
def _dot_tile(rows, after, x, d, out, size):
    if size == 4:
        dots_n(rows, after, x, d, out)
    else:
        dots_nh(rows, after, x, d, out)


@register_jitable
def _sum_tile(rows, after, factors, d, y, size):
    if size == 4:
        sums_n(rows, after, factors, d, y)
    else:
        sums_nh(rows, after, factors, d, y)


@register_jitable
def _add_token(a, t, thread, threads, y):
    """Add to y [d] the output of this thread's share of token t's neurons: all their up-projections, then all downs.

    Interleaved, a neuron's rows are read one after the other, which saves 15 % at half of the neurons of d 576 and
    f 1,536, and 25 % at a quarter (docs/log.md).
    """
    stay_apart()
    n, d, size, f = a[loops.N], a[loops.D], a[loops.SIZE], a[loops.OFFSETS + a[loops.P]]
    chosen = carray(integers(a[INDEX]), (n, f + 1))[t]
    index = chosen[chosen[f] * thread // threads : chosen[f] * (thread + 1) // threads]
    count, together = index.shape[0], a[OUT_ROW] != d * size
    gates, bias = carray(floats(a[loops.GATES]), (n, f))[t], numbers(a[loops.B_IN], f, size)
    lanes, total = to_lanes(a[loops.X] + 4 * d * t, d, size), np.zeros(d, np.float32)
    x, y_at, whole = lanes.ctypes.data, total.ctypes.data, count // ROWS * ROWS
    order = np.empty(count, np.int64)  # a tile's rows lie far apart, as in `single`
    table = np.empty(2 * count + ROWS, np.int64)  # rows of W_in, then of W_out, then what is fetched after the end
    for j in range(count):
        i = order[j] = index[far_apart(j, count)]
        table[j], table[count + j] = a[loops.W_IN] + i * a[ROW], a[loops.W_OUT] + i * a[OUT_ROW]
    table[2 * count :] = a[loops.W_OUT]
    u, up, down = np.empty(count, np.float32), table.ctypes.data, table.ctypes.data + 8 * count
    u_at = u.ctypes.data
    for j in range(0, whole, ROWS):
        _dot_tile(up + 8 * j, up + 8 * (j + ROWS), x, d, u_at + 4 * j, size)
        if together:
            _weigh(u, order, gates, bias, j, j + ROWS)
            _sum_tile(down + 8 * j, down + 8 * (j + ROWS), u_at + 4 * j, d, y_at, size)
    for j in range(whole, count):
        if size == 4:
            dots_1(up + 8 * j, up + 8 * (j + 1), x, d, u_at + 4 * j)
        else:
            dots_1h(up + 8 * j, up + 8 * (j + 1), x, d, u_at + 4 * j)
    _weigh(u, order, gates, bias, whole if together else 0, count)
    for j in range(0, 0 if together else whole, ROWS):
        _sum_tile(down + 8 * j, down + 8 * (j + ROWS), u_at + 4 * j, d, y_at, size)
    for j in range(whole, count):
        if size == 4:
            sums_1(down + 8 * j, down + 8 * (j + 1), u_at + 4 * j, d, y_at)
        else:
            sums_1h(down + 8 * j, down + 8 * (j + 1), u_at + 4 * j, d, y_at)
    add_lanes(y, total, size)
    keep(lanes, total, table, u)


@register_jitable
def _weigh(u, order, gates, bias, first, last):
    """u[j] = (u[j] + the bias) · the activated gate, of the neurons that order names."""
    for j in range(first, last):
        i = order[j]
        u[j] = (u[j] + bias[i] if bias.shape[0] > 0 else u[j]) * gates[i]


@register_jitable
def add_rows(a, thread, threads):
    """Add to Y [threads, n, d] the output of this thread's share of INDEX.

    Tokens that chose the same row find it in a cache; to form their products at once gained nothing.
    """
    n, d = a[loops.N], a[loops.D]
    for t in range(n):
        _add_token(a, t, thread, threads, a[loops.Y] + (thread * n + t) * d * 4)


@njit
def mask_loop(a, thread, threads):
    """Choose for this thread's share of the tokens of X [n, f], gates before their activation, of SIZE bytes.

    Write CHOSEN [n, units], if there is one; multiply Y [n, f], if there is one, by the activated gates, zero where not
    chosen. W_IN is Y, or in its absence what would be multiplied; with K_OUT, chosen is what it leaves.
    """
    n, p, f, size = a[loops.N], a[loops.P], a[loops.OFFSETS + a[loops.P]], a[loops.SIZE]
    offsets = a[loops.OFFSETS : loops.OFFSETS + (0 if a[SINGLE] else p + 1)]
    units = f if a[SINGLE] else p
    scale, bits, chosen = carray(floats(a[SCALE]), (f,)), np.empty(units, np.int32), np.empty(units, np.uint8)
    gate, factor, spread = np.empty(f, np.float32), np.empty(f, np.float32), np.empty(f, np.uint8)
    for t in range(n * thread // threads, n * (thread + 1) // threads):
        widen(a[loops.X] + t * f * size, gate, size)
        activate(gate, a[loops.CODE], f)
        score_bits(gate, scale, offsets, bits)
        whole = exceeds(gate, scale, a[WHOLE])
        choose_by(a, bits, whole, chosen)
        if a[loops.W_IN]:
            widen(a[loops.W_IN] + t * f * size, factor, size)
        if a[K_OUT] >= 0:
            every = np.int32(0)
            for i in range(f):
                every += np.int32(chosen[i])
        if a[K_OUT] >= 0 and not (every == f and a[loops.K] < f):
            worth = carray(floats(a[OUT_SCALE]), (f,))
            for i in range(f):
                bits[i] = np.int32(float_as_bits(gate[i] * factor[i] * worth[i]) & POSITIVE)
                bits[i] = bits[i] if chosen[i] else np.int32(-1)
            choose_again(a, bits, spread)
            for i in range(f):
                chosen[i] &= spread[i]
        if a[loops.CHOSEN]:
            carray(bytes_at(a[loops.CHOSEN]), (n, units))[t] = chosen
        if a[loops.Y]:
            kept = chosen
            if not a[SINGLE]:
                kept = spread
                for u in range(p):
                    spread[offsets[u] : offsets[u + 1]] = chosen[u]
            for i in range(f):
                value = gate[i] * factor[i]
                factor[i] = value if kept[i] else np.float32(0)
            put(factor.ctypes.data, a[loops.Y] + t * f * size, f, size)
    keep(gate, factor)


@njit
def gates_loop(a, thread, threads):
    form_gates(a, thread, threads)


@njit
def choose_loop(a):
    choose(a)


@njit
def chosen_rows_loop(a, thread, threads):
    add_rows(a, thread, threads)


@njit
def gate_loop(a):
    """Compute the whole MLP on one thread; X and Y have the type of the weights."""
    n, d, f, size, target = a[loops.N], a[loops.D], a[loops.OFFSETS + a[loops.P]], a[loops.SIZE], a[loops.Y]
    x, y = numbers(a[loops.X], n * d, size), np.zeros(n * d, np.float32)
    gates, index = np.empty(n * f, np.float32), np.empty(n * (f + 1), np.int64)
    h = np.empty(n * f if a[K_OUT] >= 0 or a[CODES_8] != 0 else 0, np.float32)
    a[loops.X], a[loops.Y], a[loops.GATES], a[INDEX], a[H] = (
        x.ctypes.data,
        y.ctypes.data,
        gates.ctypes.data,
        index.ctypes.data,
        h.ctypes.data,
    )
    screened = n == 1 and a[CODES_8] != 0 and screened_token(a)
    if not screened:
        form_gates(a, 0, 1)
        choose(a)
        if a[K_OUT] >= 0:
            form_ups(a, 0, 1)
            keep_best(a)
    if screened or a[K_OUT] >= 0:
        add_downs(a, 0, 1)
    else:
        add_rows(a, 0, 1)
    put(y.ctypes.data, target, n * d, size)
    keep(x, y, gates, index, h)
