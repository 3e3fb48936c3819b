"""The compiled loops of a training step of gate-selected neurons by chosen rows alone: choice and output.

Of many tokens each chooses apart. A row in the second cache multiplies at two fifths of a library's speed, so a
neuron that more of the tokens choose is left to the library, for all tokens: those are the *many*, and have columns of
their own. For the others, each token has a list of pairs: the neurons that go through W_out. Blocks of rows stay in
the second cache while tokens pass. `gate_gradients` is the backward pass.

Shapes: n tokens, d model, f neurons, m many, q pairs.
"""

import numpy as np
from numba import carray
from numba.extending import register_jitable

from slms.kernels.cpu import loops
from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.gate_choice import K_OUT, LEAST_OUT, OUT_SCALE, POSITIVE, SCALE, WHOLE, exceeds, score_bits
from slms.kernels.cpu.gate_loops import choose_by
from slms.kernels.cpu.gate_twice import choose_again
from slms.kernels.cpu.memory import (
    bytes_at,
    float_as_bits,
    floats,
    integers,
    keep,
    narrow,
    put,
    short_integers,
    stay_apart,
    widen,
)
from slms.kernels.cpu.near_rows import row_dots, row_sums
from slms.kernels.cpu.pointwise import activate, activate_and_derive

TOKENS = 128  # at a time, which bounds the memory of their lists
BLOCK = 384 << 10  # bytes of rows that are added
DOT_BLOCK = 64 << 10  # bytes of rows that are multiplied

# Besides those of `loops` and `gate_choice`; gates, weights, tokens and columns have SIZE bytes a number, the rest
# four. COUNTS: [threads, f], how many of a thread's tokens chose a neuron. COLUMN: [f], a neuron's column among the
# many, or −1. SPAN: [n, 3], where a token's pairs begin and end, and how many neurons it keeps. NAMES, SLOPES, SIZES,
# H: [q], each pair's neuron, up · act'(gate), act(gate) and activation. The same of the many have columns.
X, W_IN, W_OUT, GATES, CHOSEN, COUNTS, COLUMN = range(7, 14)
H_MANY, SIZES_MANY, SLOPES_MANY, SPAN, NAMES = range(18, 23)
SIZES, SLOPES, H, Y, Q = 27, 29, 32, 33, 34


@register_jitable
def share(a, thread, threads):
    return a[loops.N] * thread // threads, a[loops.N] * (thread + 1) // threads


@njit
def choose_loop(a, thread, threads):
    """Write CHOSEN and COUNTS of this thread's tokens by GATES, before their activation."""
    n, f = a[loops.N], a[loops.OFFSETS + 1]
    scale, gate, bits = carray(floats(a[SCALE]), (f,)), np.empty(f, np.float32), np.empty(f, np.int32)
    chosen, counts = carray(bytes_at(a[CHOSEN]), (n, f)), carray(integers(a[COUNTS]), (threads, f))[thread]
    low, high = share(a, thread, threads)
    for t in range(low, high):
        widen(a[GATES] + a[loops.SIZE] * f * t, gate, a[loops.SIZE])
        activate(gate, a[loops.CODE], f)
        score_bits(gate, scale, a[:0], bits)
        choose_by(a, bits, exceeds(gate, scale, a[WHOLE]), chosen[t])
        for i in range(f):
            counts[i] += chosen[t, i]


@register_jitable
def name_rows_below(names, low, high, end, rows, bytes_per_row, table):
    """Write to a table the rows of names[low:high] that are below `end`; returns behind which of them they end."""
    k = low
    while k < high and names[k] < end:
        table[k - low] = rows + names[k] * bytes_per_row
        k += 1
    return k


@register_jitable
def _list_tokens(a, first, few, column, index, count):
    """Write index [few, f] and count [few]: the chosen neurons but for the many."""
    stay_apart()
    n, f = a[loops.N], a[loops.OFFSETS + 1]
    chosen = carray(bytes_at(a[CHOSEN]), (n, f))
    for t in range(few):
        found = np.int64(0)
        for i in range(f):
            index[t, found] = i  # written over if i was not chosen; a branch would be guessed wrong
            found += np.int64(chosen[first + t, i]) & np.int64(column[i] < 0)
        count[t] = found


@register_jitable
def _form_ups(a, first, few, index, count, u):
    stay_apart()
    d, f = a[loops.D], a[loops.OFFSETS + 1]
    row_bytes = a[loops.SIZE] * d
    table, begin, block = np.empty(f + 1, np.int64), np.zeros(few, np.int64), max(1, DOT_BLOCK // row_bytes)
    for row in range(0, f, block):
        for t in range(few):
            end = name_rows_below(index[t], begin[t], count[t], row + block, a[W_IN], row_bytes, table)
            x, out = a[X] + row_bytes * (first + t), u[t].ctypes.data + 4 * begin[t]
            row_dots(table.ctypes.data, end - begin[t], x, d, out, a[loops.SIZE])
            begin[t] = end
    keep(table, u)


@register_jitable
def _choose_again(a, h, listed, chosen, columns, bits, passed, kept):
    """Write kept: which of a token's listed neurons, and then of the many, go through W_out.

    Neurons are compared in their own order, since of equals the left one stays; bits and passed [f] are room for that.
    """
    f, m, count = chosen.shape[0], columns.shape[0], listed.shape[0]
    every = count
    for j in range(m):
        every += np.int64(chosen[columns[j]])
    kept[:count] = 1
    for j in range(m):
        kept[count + j] = chosen[columns[j]]
    if a[K_OUT] < 0 or (every == f and a[loops.K] < f):
        return
    worth = carray(floats(a[OUT_SCALE]), (f,))
    if a[LEAST_OUT] == 0 and every <= a[K_OUT]:
        return
    bits[:] = -1
    for p in range(count):
        bits[listed[p]] = np.int32(float_as_bits(h[p] * worth[listed[p]]) & POSITIVE)
    for j in range(m):
        value = np.int32(float_as_bits(h[count + j] * worth[columns[j]]) & POSITIVE)
        bits[columns[j]] = value if chosen[columns[j]] else np.int32(-1)
    choose_again(a, bits, passed)
    for p in range(count):
        kept[p] = passed[listed[p]]
    for j in range(m):
        kept[count + j] = passed[columns[j]]


@register_jitable
def _keep_pairs(a, first, few, columns, index, count, u, at):
    """Write the pairs of some tokens from `at` on, their SPAN, and the columns of the many; returns where they end."""
    stay_apart()
    n, f, q, m, size = a[loops.N], a[loops.OFFSETS + 1], a[Q], columns.shape[0], a[loops.SIZE]
    chosen, span = carray(bytes_at(a[CHOSEN]), (n, f)), carray(integers(a[SPAN]), (n, 3))
    names, stored = carray(short_integers(a[NAMES]), (q,)), carray(floats(a[H]), (q,))
    sizes, slopes = carray(floats(a[SIZES]), (q,)), carray(floats(a[SLOPES]), (q,))
    gates, gate, slope, h = (
        np.empty(f, np.float32),
        np.empty(f, np.float32),
        np.empty(f, np.float32),
        np.empty(f, np.float32),
    )
    bits, up_many = np.empty(f, np.int32), np.empty(m, np.float32)
    passed, kept = np.empty(f, np.uint8), np.empty(f, np.uint8)
    for t in range(few):
        token, c = first + t, count[t]
        listed, ups = index[t, :c], u[t, :c]
        widen(a[GATES] + size * f * token, gates, size)
        widen(a[H_MANY] + size * m * token, up_many, size)
        for p in range(c):
            gate[p] = gates[listed[p]]
        for j in range(m):
            gate[c + j] = gates[columns[j]]
        activate_and_derive(gate, slope, a[loops.CODE], c + m)
        for p in range(c):
            slope[p] *= ups[p]
            h[p] = gate[p] * ups[p]
        for j in range(m):
            slope[c + j] *= up_many[j]
            h[c + j] = gate[c + j] * up_many[j]
        _choose_again(a, h, listed, chosen[token], columns, bits, passed, kept)
        span[token, 0] = at
        for p in range(c):
            names[at], sizes[at], slopes[at], stored[at] = listed[p], gate[p], slope[p], h[p]
            at += np.int64(kept[p])
        span[token, 1] = at
        total = np.int32(0)
        for j in range(c, c + m):
            total += np.int32(kept[j])
            h[j] = h[j] if kept[j] else np.float32(0)
            gate[j] = gate[j] if kept[j] else np.float32(0)
            slope[j] = slope[j] if kept[j] else np.float32(0)
        span[token, 2] = at - span[token, 0] + total
        put(h.ctypes.data + 4 * c, a[H_MANY] + size * m * token, m, size)
        put(gate.ctypes.data + 4 * c, a[SIZES_MANY] + size * m * token, m, size)
        put(slope.ctypes.data + 4 * c, a[SLOPES_MANY] + size * m * token, m, size)
    keep(h, gate, slope)
    return at


@register_jitable
def factors_at(wide, thin, count, size):
    """The address of these numbers in the rows' type."""
    if size == 4:
        return wide.ctypes.data
    narrow(wide.ctypes.data, thin.ctypes.data, count)
    return thin.ctypes.data


@register_jitable
def _form_downs(a, first, few):
    """Write Y: the sums of the pairs' rows of W_OUT."""
    stay_apart()
    n, d, f, q, size = a[loops.N], a[loops.D], a[loops.OFFSETS + 1], a[Q], a[loops.SIZE]
    names, h, span = (
        carray(short_integers(a[NAMES]), (q,)),
        carray(floats(a[H]), (q,)),
        carray(integers(a[SPAN]), (n, 3)),
    )
    table, factors, thin = np.empty(f + 1, np.int64), np.empty(f + 1, np.float32), np.empty(f + 1, np.uint16)
    begin, block = span[first : first + few, 0].copy(), max(1, BLOCK // (size * d))
    for row in range(0, f, block):
        for t in range(few):
            low = begin[t]
            end = name_rows_below(names, low, span[first + t, 1], row + block, a[W_OUT], size * d, table)
            some, out = end - low, a[Y] + 4 * d * (first + t)
            factors[:some] = h[low:end]
            if some & 1:
                table[some], factors[some] = table[0], 0
            some += some & 1
            row_sums(table.ctypes.data, some, d, factors_at(factors, thin, some, size), out, size, np.int64(row == 0))
            begin[t] = end
    keep(table, factors, thin)


@njit
def forward_loop(a, thread, threads):
    """Write the pairs of this thread's tokens and the columns of the many, whose ups H_MANY holds, and Y."""
    f = a[loops.OFFSETS + 1]
    column, counts = carray(integers(a[COLUMN]), (f,)), carray(integers(a[COUNTS]), (threads, f))
    columns, at = np.nonzero(column >= 0)[0], thread  # a pair that is written over may follow each thread's last
    for before in range(thread):
        for i in range(f):
            at += counts[before, i] if column[i] < 0 else 0
    index, count = np.empty((TOKENS, f + 1), np.int32), np.empty(TOKENS, np.int64)
    u = np.empty((TOKENS, f), np.float32)
    low, high = share(a, thread, threads)
    for first in range(low, high, TOKENS):
        few = min(TOKENS, high - first)
        _list_tokens(a, first, few, column, index, count)
        _form_ups(a, first, few, index, count, u)
        at = _keep_pairs(a, first, few, columns, index, count, u, at)
        _form_downs(a, first, few)
