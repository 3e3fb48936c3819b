"""The compiled loops of a training step of gate-selected neurons in bfloat16, which multiply by chosen rows alone.

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
    short_integers,
    stay_apart,
    widen,
)
from slms.kernels.cpu.pairs import (
    TWINS,
    add_pairs,
    add_pairs_twice,
    add_twins,
    add_twins_2,
    dot_pairs_at,
    put_pairs,
    put_pairs_twice,
    put_twins,
    put_twins_2,
)
from slms.kernels.cpu.pointwise import activate, activate_and_derive
from slms.kernels.cpu.vectors import LANES

TOKENS = 128  # at a time, which bounds the memory of their lists
BLOCK = 384 << 10  # bytes of rows that are added
DOT_BLOCK = 64 << 10  # bytes of rows that are multiplied
TWIN_ROWS = 96  # rows of W_both, of which a part of the columns stays in the first cache
BLOCK_TOKENS = 512  # whose rows stay in the second cache while the weights' gradients are formed

# Besides those of `loops` and `gate_choice`. COUNTS: [threads, f], how many of a thread's tokens chose a neuron.
# COLUMN: [f], a neuron's column among the many, or −1. SPAN: [n, 3], where a token's pairs begin and end, and how many
# neurons it keeps. NAMES, SLOPES, SIZES, H: [q], each pair's neuron, up · act'(gate), act(gate) and activation. The
# same of the many have columns. DU_DG: [q, 2], the gradients of up and gate.
X, W_IN, W_BOTH, W_OUT, GATES, CHOSEN, COUNTS, COLUMN = range(7, 15)
H_MANY, SIZES_MANY, SLOPES_MANY, SPAN, NAMES = range(18, 23)
SIZES, SLOPES, H, Y, Q = 27, 29, 32, 33, 34
GRAD, D_X, DU_DG, D_W_BOTH, D_W_OUT = GATES, CHOSEN, COUNTS, COLUMN, H_MANY  # of the backward loops


@register_jitable
def half_of(value):
    """A float32 as bfloat16, rounded to the nearest (ties to even)."""
    bits = float_as_bits(value)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return np.uint16((rounded if value == value else np.uint32(0x7FC00000)) >> np.uint32(16))


@register_jitable
def float_of(half):
    return bits_as_float(np.uint32(half) << np.uint32(16))


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
        widen(a[GATES] + 2 * f * t, gate, 2)
        activate(gate, a[loops.CODE], f)
        score_bits(gate, scale, a[:0], bits)
        choose_by(a, bits, exceeds(gate, scale, a[WHOLE]), chosen[t])
        for i in range(f):
            counts[i] += chosen[t, i]


@njit
def join_loop(a, thread, threads):
    """Interleave the rows of X and Y [n, d] in W_BOTH [n, d, 2]."""
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
    table, begin, block = np.empty(f + 1, np.int64), np.zeros(few, np.int64), max(1, DOT_BLOCK // (2 * d))
    for row in range(0, f, block):
        for t in range(few):
            end = _name(index[t], begin[t], count[t], row + block, a[W_IN], 2 * d, table)
            x, out = a[X] + 2 * d * (first + t), u[t].ctypes.data + 4 * begin[t]
            dot_pairs_at(table.ctypes.data, end - begin[t], x, d, out)
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
    n, f, q, m = a[loops.N], a[loops.OFFSETS + 1], a[Q], columns.shape[0]
    chosen, span = carray(bytes_at(a[CHOSEN]), (n, f)), carray(integers(a[SPAN]), (n, 3))
    names, stored = carray(short_integers(a[NAMES]), (q,)), carray(halves(a[H]), (q,))
    sizes, slopes = carray(floats(a[SIZES]), (q,)), carray(floats(a[SLOPES]), (q,))
    h_many, sizes_many = carray(halves(a[H_MANY]), (n, m)), carray(halves(a[SIZES_MANY]), (n, m))
    slopes_many = carray(halves(a[SLOPES_MANY]), (n, m))
    gates = carray(halves(a[GATES]), (n, f))
    gate, slope, h = np.empty(f, np.float32), np.empty(f, np.float32), np.empty(f, np.float32)
    bits, kept = np.empty(f, np.int32), np.empty(f, np.uint8)
    for t in range(few):
        token, c = first + t, count[t]
        before, listed, ups, up_many = gates[token], index[t, :c], u[t, :c], h_many[token]
        for p in range(c):
            gate[p] = float_of(before[listed[p]])
        for j in range(m):
            gate[c + j] = float_of(before[columns[j]])
        activate_and_derive(gate, slope, a[loops.CODE], c + m)
        for p in range(c):
            slope[p] *= ups[p]
            h[p] = gate[p] * ups[p]
        for j in range(m):
            up = float_of(up_many[j])
            slope[c + j] *= up
            h[c + j] = gate[c + j] * up
        _choose_again(a, h, listed, chosen[token], columns, bits, kept)
        span[token, 0] = at
        for p in range(c):
            names[at], sizes[at], slopes[at], stored[at] = listed[p], gate[p], slope[p], half_of(h[p])
            at += np.int64(kept[p])
        span[token, 1] = at
        total = np.int32(0)
        for j in range(m):  # by products with 0 or 1, as vector code needs it
            there = np.uint16(kept[c + j])
            h_many[token, j] = half_of(h[c + j]) * there
            sizes_many[token, j], slopes_many[token, j] = half_of(gate[c + j]) * there, half_of(slope[c + j]) * there
            total += np.int32(kept[c + j])
        span[token, 2] = at - span[token, 0] + total
    return at


@register_jitable
def _form_downs(a, first, few):
    """Write Y: the sums of the pairs' rows of W_OUT."""
    stay_apart()
    n, d, f, q = a[loops.N], a[loops.D], a[loops.OFFSETS + 1], a[Q]
    span, names, h = (
        carray(integers(a[SPAN]), (n, 3)),
        carray(short_integers(a[NAMES]), (q,)),
        carray(halves(a[H]), (q,)),
    )
    table, factors, block = np.empty(f + 1, np.int64), np.empty(f + 1, np.uint16), max(1, BLOCK // (2 * d))
    begin = span[first : first + few, 0].copy()
    for row in range(0, f, block):
        for t in range(few):
            low = begin[t]
            end = _name(names, low, span[first + t, 1], row + block, a[W_OUT], 2 * d, table)
            some = end - low
            factors[:some] = h[low:end]
            if some & 1:
                table[some], factors[some] = table[0], 0
            out = a[Y] + 4 * d * (first + t)
            if row == 0:
                put_pairs(table.ctypes.data, (some + 1) >> 1, d, factors.ctypes.data, 0, out, 0)
            else:
                add_pairs(table.ctypes.data, (some + 1) >> 1, d, factors.ctypes.data, 0, out, 0)
            begin[t] = end
    keep(table, factors)


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
    n, d, f = a[loops.N], a[loops.D], a[loops.OFFSETS + 1]
    span, end, whole = carray(integers(a[SPAN]), (n, 3)), np.empty(few, np.int64), d // TWINS * TWINS
    for row in range(0, f, TWIN_ROWS):
        for t in range(few):
            k = begin[t]
            while k < span[first + t, 1] and names[k] < row + TWIN_ROWS:
                k += 1
            end[t] = k
        for part in range(0, whole, TWINS):
            for t in range(few):
                low, rows, out = begin[t], a[W_BOTH] + 4 * part, a[D_X] + 4 * (d * (first + t) + part)
                if row == 0:
                    put_twins(a[NAMES] + 4 * low, end[t] - low, rows, 4 * d, a[DU_DG] + 4 * low, out)
                else:
                    add_twins(a[NAMES] + 4 * low, end[t] - low, rows, 4 * d, a[DU_DG] + 4 * low, out)
        for part in range(whole, d, 2 * LANES):
            for t in range(few):
                low, rows, out = begin[t], a[W_BOTH] + 4 * part, a[D_X] + 4 * (d * (first + t) + part)
                if row == 0:
                    put_twins_2(a[NAMES] + 4 * low, end[t] - low, rows, 4 * d, a[DU_DG] + 4 * low, out)
                else:
                    add_twins_2(a[NAMES] + 4 * low, end[t] - low, rows, 4 * d, a[DU_DG] + 4 * low, out)
        begin[:] = end


@njit
def tokens_loop(a, thread, threads):
    """Write DU_DG of the pairs of this thread's tokens, and D_X, by GRAD."""
    n, d, f, q = a[loops.N], a[loops.D], a[loops.OFFSETS + 1], a[Q]
    span, names = carray(integers(a[SPAN]), (n, 3)), carray(short_integers(a[NAMES]), (q,))
    sizes, slopes = carray(floats(a[SIZES]), (q,)), carray(floats(a[SLOPES]), (q,))
    both = carray(halves(a[DU_DG]), (q, 2))
    table, e = np.empty(f + 1, np.int64), np.empty(f, np.float32)
    last = share(a, thread, threads)[1]
    for first in range(share(a, thread, threads)[0], last, TOKENS):
        few = min(TOKENS, last - first)
        begin = span[first : first + few, 0].copy()
        block = max(1, DOT_BLOCK // (2 * d))
        for row in range(0, f, block):
            for t in range(few):
                low = begin[t]
                end = _name(names, low, span[first + t, 1], row + block, a[W_OUT], 2 * d, table)
                dot_pairs_at(table.ctypes.data, end - low, a[GRAD] + 2 * d * (first + t), d, e.ctypes.data)
                for k in range(low, end):
                    both[k, 0], both[k, 1] = half_of(e[k - low] * sizes[k]), half_of(e[k - low] * slopes[k])
                begin[t] = end
        if a[D_X]:
            begin[:] = span[first : first + few, 0]
            _form_d_x(a, first, few, names, begin)
    keep(table, e)


@register_jitable
def _by_neuron(a, tokens, low, high, start, place, found):
    """List the pairs of tokens [first, last) with neurons low to high by neuron.

    start [high − low + 1]: where each neuron's begin; found: a pair's du, dg, h and how far its token is from the
    first, in sixteen bits each, so that a pair is written to memory at once.
    """
    stay_apart()
    n, q = a[loops.N], a[Q]
    span, names = carray(integers(a[SPAN]), (n, 3)), carray(short_integers(a[NAMES]), (q,))
    both, h = carray(short_integers(a[DU_DG]), (q,)), carray(halves(a[H]), (q,))
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
        owner = np.uint64(t - first) << np.uint64(48)
        for k in range(span[t, 0], span[t, 1]):
            i = names[k] - low
            if 0 <= i < high - low:
                found[place[i]] = owner | np.uint64(h[k]) << np.uint64(32) | np.uint64(np.uint32(both[k]))
                place[i] += 1


@njit
def weights_loop(a, thread, threads):
    """Write D_W_BOTH [2, f, d], of W_in and W_gate, and D_W_OUT: what the pairs of this thread's neurons give."""
    n, d, f = a[loops.N], a[loops.D], a[loops.OFFSETS + 1]
    low, high = f * thread // threads, f * (thread + 1) // threads
    span = carray(integers(a[SPAN]), (n, 3))
    most = 0
    for first in range(0, n, BLOCK_TOKENS):
        number = 0
        for t in range(first, min(first + BLOCK_TOKENS, n)):
            number += span[t, 1] - span[t, 0]
        most = max(most, number)
    start, place, found = np.empty(high - low + 1, np.int64), np.empty(high - low, np.int64), np.empty(most, np.uint64)
    table, factors = np.empty(BLOCK_TOKENS + 1, np.int64), np.empty((2, BLOCK_TOKENS + 1), np.uint16)
    apart, out_apart = 2 * (BLOCK_TOKENS + 1), 4 * f * d
    for first in range(0, max(n, 1), BLOCK_TOKENS):  # without tokens, zeros are written
        _by_neuron(a, (first, min(first + BLOCK_TOKENS, n)), low, high, start, place, found)
        for source in range(2):  # one after the other, so that only one stays in the cache
            rows = (a[X] if source == 0 else a[GRAD]) + 2 * d * first
            for i in range(high - low):
                pairs, count, there = found[start[i] : start[i + 1]], start[i + 1] - start[i], 4 * d * (low + i)
                for k in range(count):
                    table[k] = rows + np.int64(pairs[k] >> np.uint64(48)) * 2 * d
                    factors[0, k] = np.uint16(pairs[k] if source == 0 else pairs[k] >> np.uint64(32))
                    factors[1, k] = np.uint16(pairs[k] >> np.uint64(16))
                if count & 1:
                    table[count], factors[0, count], factors[1, count] = table[0], 0, 0
                half = (count + 1) >> 1
                both, out = a[D_W_BOTH] + there, a[D_W_OUT] + there
                if source == 0 and first == 0:
                    put_pairs_twice(table.ctypes.data, half, d, factors.ctypes.data, apart, both, out_apart)
                elif source == 0:
                    add_pairs_twice(table.ctypes.data, half, d, factors.ctypes.data, apart, both, out_apart)
                elif first == 0:
                    put_pairs(table.ctypes.data, half, d, factors.ctypes.data, 0, out, 0)
                else:
                    add_pairs(table.ctypes.data, half, d, factors.ctypes.data, 0, out, 0)
    keep(table, found, factors, start)
