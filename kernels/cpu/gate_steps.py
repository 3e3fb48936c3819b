"""The compiled loops of a training step of gate-selected neurons, which multiply by chosen rows alone.

Of many tokens each chooses apart. A row in the second cache multiplies at two fifths of a library's speed, so a
neuron that more of the tokens choose is left to the library, for all tokens: those are the *many*, and have columns of
their own. For the others, each token has a list of pairs: the neurons that go through W_out. Blocks of rows stay in
the second cache while tokens pass. The gradients of the weights need the lists the other way, by neuron.

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
    bits_as_float,
    bytes_at,
    float_as_bits,
    floats,
    halves,
    integers,
    keep,
    narrow,
    put,
    short_integers,
    stay_apart,
    widen,
)
from slms.kernels.cpu.near_rows import FEW, TWINS, row_dots, row_sums, twin_sums, two_row_sums
from slms.kernels.cpu.pointwise import activate, activate_and_derive

TOKENS = 128  # at a time, which bounds the memory of their lists
BLOCK = 384 << 10  # bytes of rows that are added
DOT_BLOCK = 64 << 10  # bytes of rows that are multiplied
TWIN_BYTES = 36 << 10  # of rows of W_in and W_gate, of which a part of the columns stays in the first cache
BLOCK_BYTES = 576 << 10  # of tokens, which stay in the second cache while the weights' gradients are formed

# Besides those of `loops` and `gate_choice`; gates, weights, tokens and columns have SIZE bytes a number, the rest
# four. COUNTS: [threads, f], how many of a thread's tokens chose a neuron. COLUMN: [f], a neuron's column among the
# many, or −1. SPAN: [n, 3], where a token's pairs begin and end, and how many neurons it keeps. NAMES, SLOPES, SIZES,
# H: [q], each pair's neuron, up · act'(gate), act(gate) and activation. The same of the many have columns. W_BOTH:
# bfloat16, W_in and W_gate interleaved. DU_DG: [q, 2], of SIZE bytes, the gradients of up and gate.
X, W_IN, W_BOTH, W_OUT, GATES, CHOSEN, COUNTS, COLUMN = range(7, 15)
H_MANY, SIZES_MANY, SLOPES_MANY, SPAN, NAMES = range(18, 23)
SIZES, SLOPES, H, Y, Q = 27, 29, 32, 33, 34
GRAD, D_X, DU_DG, D_W_BOTH, D_W_OUT, W_GATE = GATES, CHOSEN, COUNTS, COLUMN, H_MANY, Y  # of the backward loops


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


@njit
def join_loop(a, thread, threads):
    """Interleave the rows of X and Y [n, d] in W_BOTH [n, d, 2], bfloat16."""
    low, high = share(a, thread, threads)
    d, count = a[loops.D], (high - low) * a[loops.D]
    first, second = carray(halves(a[X] + 2 * d * low), (count,)), carray(halves(a[Y] + 2 * d * low), (count,))
    both = carray(halves(a[W_BOTH] + 4 * d * low), (2 * count,))
    for i in range(count):
        both[2 * i], both[2 * i + 1] = first[i], second[i]


@register_jitable
def _name(names, low, high, end, rows, bytes_per_row, table):
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
            end = _name(index[t], begin[t], count[t], row + block, a[W_IN], row_bytes, table)
            x, out = a[X] + row_bytes * (first + t), u[t].ctypes.data + 4 * begin[t]
            row_dots(table.ctypes.data, end - begin[t], x, d, out, a[loops.SIZE])
            begin[t] = end
    keep(table, u)


@register_jitable
def _choose_again(a, h, listed, chosen, columns, bits, kept):
    """Write kept: which of a token's listed neurons, and then of the many, go through W_out."""
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
    for p in range(count):
        bits[p] = np.int32(float_as_bits(h[p] * worth[listed[p]]) & POSITIVE)
    for j in range(m):
        value = np.int32(float_as_bits(h[count + j] * worth[columns[j]]) & POSITIVE)
        bits[count + j] = value if chosen[columns[j]] else np.int32(-1)
    if a[LEAST_OUT] or every > a[K_OUT]:
        choose_again(a, bits[: count + m], kept)


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
    bits, kept, up_many = np.empty(f, np.int32), np.empty(f, np.uint8), np.empty(m, np.float32)
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
        _choose_again(a, h, listed, chosen[token], columns, bits, kept)
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
def _factors(wide, thin, count, size):
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
            end = _name(names, low, span[first + t, 1], row + block, a[W_OUT], size * d, table)
            some, out = end - low, a[Y] + 4 * d * (first + t)
            factors[:some] = h[low:end]
            if some & 1:
                table[some], factors[some] = table[0], 0
            some += some & 1
            row_sums(table.ctypes.data, some, d, _factors(factors, thin, some, size), out, size, row == 0)
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


@register_jitable
def _form_d_x(a, first, few, names, begin):
    """Write D_X by DU_DG: a part of the columns of a block of rows stays in the first cache for all tokens."""
    stay_apart()
    n, d, f, size = a[loops.N], a[loops.D], a[loops.OFFSETS + 1], a[loops.SIZE]
    span, end, block = carray(integers(a[SPAN]), (n, 3)), np.empty(few, np.int64), TWIN_BYTES // (2 * size * TWINS)
    rows, apart, other = a[W_IN], size * d, a[W_GATE] - a[W_IN]
    if size == 2:
        rows, apart = a[W_BOTH], 4 * d
    column = apart // d  # bytes of a column
    for row in range(0, f, block):
        for t in range(few):
            k = begin[t]
            while k < span[first + t, 1] and names[k] < row + block:
                k += 1
            end[t] = k
        part = 0
        while part < d:
            many = d - part >= TWINS
            for t in range(few):
                low, out = begin[t], a[D_X] + 4 * (d * (first + t) + part)
                listed, factors = a[NAMES] + 4 * low, a[DU_DG] + 2 * size * low
                there = rows + column * part
                twin_sums(listed, end[t] - low, there, apart, other, factors, out, size, row == 0, many)
            part += TWINS if many else FEW
        begin[:] = end


@njit
def tokens_loop(a, thread, threads):
    """Write DU_DG of the pairs of this thread's tokens, and D_X, by GRAD."""
    n, d, f, q, size = a[loops.N], a[loops.D], a[loops.OFFSETS + 1], a[Q], a[loops.SIZE]
    span, names = carray(integers(a[SPAN]), (n, 3)), carray(short_integers(a[NAMES]), (q,))
    sizes, slopes = carray(floats(a[SIZES]), (q,)), carray(floats(a[SLOPES]), (q,))
    table, e, both = np.empty(f + 1, np.int64), np.empty(f, np.float32), np.empty((f, 2), np.float32)
    block, last = max(1, DOT_BLOCK // (size * d)), share(a, thread, threads)[1]
    for first in range(share(a, thread, threads)[0], last, TOKENS):
        few = min(TOKENS, last - first)
        begin = span[first : first + few, 0].copy()
        for row in range(0, f, block):
            for t in range(few):
                low, grad = begin[t], a[GRAD] + size * d * (first + t)
                end = _name(names, low, span[first + t, 1], row + block, a[W_OUT], size * d, table)
                row_dots(table.ctypes.data, end - low, grad, d, e.ctypes.data, size)
                for k in range(end - low):
                    both[k, 0], both[k, 1] = e[k] * sizes[low + k], e[k] * slopes[low + k]
                put(both.ctypes.data, a[DU_DG] + 2 * size * low, 2 * (end - low), size)
                begin[t] = end
        if a[D_X]:
            begin[:] = span[first : first + few, 0]
            _form_d_x(a, first, few, names, begin)
    keep(table, e, both)


@register_jitable
def _by_neuron(a, tokens, low, high, start, place, found):
    """List the pairs of tokens [first, last) with neurons low to high by neuron.

    start [high − low + 1]: where each neuron's begin; found [pairs, 4]: a pair's du, dg, h and, as bits, how far its
    token is from the first: a pair is written to one place.
    """
    stay_apart()
    n, f, q, size = a[loops.N], a[loops.OFFSETS + 1], a[Q], a[loops.SIZE]
    span, names = carray(integers(a[SPAN]), (n, 3)), carray(short_integers(a[NAMES]), (q,))
    both, h = np.empty(2 * f, np.float32), carray(floats(a[H]), (q,))
    first, last = tokens
    place[:] = 0
    for t in range(first, last):
        for k in range(span[t, 0], span[t, 1]):
            if low <= names[k] < high:
                place[names[k] - low] += 1
    start[0] = 0
    for i in range(high - low):
        start[i + 1] = start[i] + place[i]
        place[i] = start[i]
    for t in range(first, last):
        begin, owner = span[t, 0], bits_as_float(np.uint32(t - first))
        widen(a[DU_DG] + 2 * size * begin, both[: 2 * (span[t, 1] - begin)], size)
        for k in range(span[t, 1] - begin):
            i = names[begin + k] - low
            if 0 <= i < high - low:
                at = place[i]
                found[at, 0], found[at, 1], found[at, 2], found[at, 3] = (
                    both[2 * k],
                    both[2 * k + 1],
                    h[begin + k],
                    owner,
                )
                place[i] = at + 1


@njit
def weights_loop(a, thread, threads):
    """Write D_W_BOTH [2, f, d], of W_in and W_gate, and D_W_OUT: what the pairs of this thread's neurons give."""
    n, d, f, size = a[loops.N], a[loops.D], a[loops.OFFSETS + 1], a[loops.SIZE]
    low, high = f * thread // threads, f * (thread + 1) // threads
    span, some = carray(integers(a[SPAN]), (n, 3)), max(1, BLOCK_BYTES // (size * d))
    most = 0
    for first in range(0, n, some):
        number = 0
        for t in range(first, min(first + some, n)):
            number += span[t, 1] - span[t, 0]
        most = max(most, number)
    start, place, found = (
        np.empty(high - low + 1, np.int64),
        np.empty(high - low, np.int64),
        np.empty((most, 4), np.float32),
    )
    table, factors, thin = (
        np.empty(some + 1, np.int64),
        np.empty((2, some + 1), np.float32),
        np.empty((2, some + 1), np.uint16),
    )
    apart, out_apart = size * (some + 1), 4 * f * d
    for first in range(0, max(n, 1), some):  # without tokens, zeros are written
        _by_neuron(a, (first, min(first + some, n)), low, high, start, place, found)
        for source in range(2):  # one after the other, so that only one stays in the cache
            rows = (a[X] if source == 0 else a[GRAD]) + size * d * first
            for i in range(high - low):
                pairs, count, there = found[start[i] : start[i + 1]], start[i + 1] - start[i], 4 * d * (low + i)
                for k in range(count):
                    table[k] = rows + np.int64(float_as_bits(pairs[k, 3])) * size * d
                    factors[0, k] = pairs[k, 0] if source == 0 else pairs[k, 2]
                    factors[1, k] = pairs[k, 1]
                if count & 1:
                    table[count], factors[0, count], factors[1, count] = table[0], 0, 0
                count += count & 1
                scales = _factors(factors[0], thin[0], count, size)
                if source == 0:
                    _factors(factors[1], thin[1], count, size)
                    out = a[D_W_BOTH] + there
                    two_row_sums(table.ctypes.data, count, d, scales, apart, out, out_apart, size, first == 0)
                else:
                    row_sums(table.ctypes.data, count, d, scales, a[D_W_OUT] + there, size, first == 0)
    keep(table, found, factors, thin, start)
