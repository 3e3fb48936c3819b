"""The backward pass of `gate_steps`: the gradients of the inputs by token, and of the weights by neuron.

With u = x W_inᵀ, v = x W_gateᵀ, h = act(v) ⊙ u and e = grad W_outᵀ, of the pairs alone: du = e ⊙ act(v), dv = e ⊙ u ⊙
act'(v), dx = du W_in + dv W_gate, dW_in = duᵀ x, dW_gate = dvᵀ x, dW_out = hᵀ grad.

Shapes: n tokens, d model, f neurons, q pairs.
"""

import numpy as np
from numba import carray
from numba.extending import register_jitable

from slms.kernels.cpu import loops
from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.gate_steps import (
    DOT_BLOCK,
    NAMES,
    SIZES,
    SLOPES,
    SPAN,
    TOKENS,
    W_IN,
    W_OUT,
    H,
    Q,
    X,
    factors_at,
    name_rows_below,
    share,
)
from slms.kernels.cpu.memory import (
    bits_as_float,
    float_as_bits,
    floats,
    halves,
    integers,
    keep,
    put,
    short_integers,
    stay_apart,
    widen,
)
from slms.kernels.cpu.near_rows import FEW, TWINS, row_dots, row_sums, twin_sums, two_row_sums

TWIN_BYTES = 36 << 10  # of rows of W_in and W_gate, of which a part of the columns stays in the first cache
BLOCK_BYTES = 576 << 10  # of tokens, which stay in the second cache while the weights' gradients are formed

# Besides those of `gate_steps` that lie outside this range. W_BOTH: bfloat16, W_in and W_gate interleaved. DU_DG:
# [q, 2], of SIZE bytes, the gradients of up and gate, before its activation.
GRAD, D_X, DU_DG, W_BOTH, D_W_BOTH, D_W_OUT, W_GATE = 10, 11, 12, 13, 18, 19, 20


@njit
def join_loop(a, thread, threads):
    """Interleave the rows of W_IN and W_GATE [n, d] in W_BOTH [n, d, 2], bfloat16."""
    low, high = share(a, thread, threads)
    d, count = a[loops.D], (high - low) * a[loops.D]
    first, second = carray(halves(a[W_IN] + 2 * d * low), (count,)), carray(halves(a[W_GATE] + 2 * d * low), (count,))
    both = carray(halves(a[W_BOTH] + 4 * d * low), (2 * count,))
    for i in range(count):
        both[2 * i], both[2 * i + 1] = first[i], second[i]


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
                twin_sums(listed, end[t] - low, there, apart, other, factors, out, size, np.int64(row == 0), many)
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
                end = name_rows_below(names, low, span[first + t, 1], row + block, a[W_OUT], size * d, table)
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
                scales = factors_at(factors[0], thin[0], count, size)
                if source == 0:
                    factors_at(factors[1], thin[1], count, size)
                    out = a[D_W_BOTH] + there
                    two_row_sums(table.ctypes.data, count, d, scales, apart, out, out_apart, size, np.int64(first == 0))
                else:
                    row_sums(table.ctypes.data, count, d, scales, a[D_W_OUT] + there, size, np.int64(first == 0))
    keep(table, found, factors, thin, start)
