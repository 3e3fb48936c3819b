"""The compiled loops (numba) of a routed MLP on the CPU, and their arguments; `kernels.cpu.rows` launches them.

Library products cost more to start than the work of a few tokens, and pack the weights of every pathway again. Here one
loop goes over the pathways and, in each, over blocks of its tokens and chunks of its neurons that stay in the first
cache, and does up, activation, gate and down without leaving them.

Shapes: n tokens, d model, f neurons, p pathways; inside a pathway: r tokens that chose it.
"""

import numpy as np
from numba import carray
from numba.extending import register_jitable

from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.gathered import ROWS, add_rows_at, dot_rows_at
from slms.kernels.cpu.memory import bytes_at, fetch_share, floats, keep, numbers, stay_apart
from slms.kernels.cpu.pointwise import activate
from slms.kernels.cpu.single import add_lanes, dot_one, sum_one, to_lanes
from slms.kernels.cpu.vectors import dots, sums

ALONE = 128  # neurons that a single token processes between its up- and its down-projection
WIDE = 96  # from so many neurons a pathway on, on average, a single token takes them pathway by pathway (docs/log.md)
BLOCK = 128  # at most so many tokens, whose inputs and outputs stay in the second cache

dots_4, dots_2, dots_1 = (dots(4, tokens) for tokens in (4, 2, 1))
dots_4h, dots_2h, dots_1h = (dots(4, tokens, half=True) for tokens in (4, 2, 1))
sums_4, sums_2, sums_1 = sums(4, 4), sums(2, 8), sums(1, 8)
sums_4h, sums_2h, sums_1h = sums(4, 4, half=True), sums(2, 8, half=True), sums(1, 8, half=True)

# A loop's arguments: numbers and addresses, then the offsets. 0 stands for an input that is None.
N, D, P, CODE, SIZE, THREAD, THREADS, X, W_IN, B_IN, W_GATE, B_GATE, W_OUT, GATES, CHOSEN, Y = range(16)
GRAD, D_X, D_W_IN, D_B_IN, D_W_GATE, D_B_GATE, D_W_OUT, D_GATES = range(15, 23)
ROUTER_IN, ROUTER_B_IN, ROUTER_OUT, ROUTER_B_OUT, WIDTH, K, GATE, RAMP, BIAS, B_OUT, MEAN, N_SHARED = range(23, 35)
OFFSETS = 35
NOTHING = (0, 0)


@register_jitable
def dot_rows(rows, tokens, n_rows, n_tokens, d, out, stride, size, ahead):
    """out[j · stride + t] = row_j · token_t; tables and out are padded to multiples of four.

    ahead: begin and end of the memory needed next, fetched meanwhile (saves 5 % of a large call), or NOTHING.
    """
    stay_apart()
    for t in range(0, n_tokens, 4):
        left = n_tokens - t
        fetch_share(ahead[0], ahead[1], t, n_tokens)
        for j in range(0, n_rows, 4):
            w, x, o = rows + 8 * j, tokens + 8 * t, out + 4 * (j * stride + t)
            if size == 4:
                if left > 2:
                    dots_4(w, x, d, o, stride)
                elif left == 2:
                    dots_2(w, x, d, o, stride)
                else:
                    dots_1(w, x, d, o, stride)
            elif left > 2:
                dots_4h(w, x, d, o, stride)
            elif left == 2:
                dots_2h(w, x, d, o, stride)
            else:
                dots_1h(w, x, d, o, stride)


@register_jitable
def sum_rows(out, rows, n_out, n_rows, d, factors, by_row, by_out, size, ahead):
    """out_t += Σ_k factors[k · by_row + t · by_out] row_k; the table out is padded to a multiple of four."""
    stay_apart()
    for t in range(0, n_out, 4):
        left, o, f = n_out - t, out + 8 * t, factors + 4 * t * by_out
        fetch_share(ahead[0], ahead[1], t, n_out)
        if size == 4:
            if left > 2:
                sums_4(o, rows, n_rows, d, f, by_row, by_out)
            elif left == 2:
                sums_2(o, rows, n_rows, d, f, by_row, by_out)
            else:
                sums_1(o, rows, n_rows, d, f, by_row, by_out)
        elif left > 2:
            sums_4h(o, rows, n_rows, d, f, by_row, by_out)
        elif left == 2:
            sums_2h(o, rows, n_rows, d, f, by_row, by_out)
        else:
            sums_1h(o, rows, n_rows, d, f, by_row, by_out)


@register_jitable
def padded(count):
    return (count + 3) & ~3


@register_jitable
def share(m, p, thread, threads):
    """Where a thread's share of the m neurons of pathway p begins; of a single neuron, threads take it in turns."""
    return (m * thread + p % threads) // threads


@register_jitable
def tokens_of(chosen, p, tokens):
    """Write the tokens that chose pathway p, ascending; returns how many."""
    r = 0
    for t in range(chosen.shape[0]):
        if chosen[t, p]:
            tokens[r] = t
            r += 1
    return r


@register_jitable
def name_tokens(table, base, bytes_per_row, tokens, spare):
    """The addresses of these tokens' rows; the table is padded with the spare row or, without one, the last row."""
    count = tokens.shape[0]
    for t in range(padded(count)):
        table[t] = base + tokens[min(t, count - 1)] * bytes_per_row if t < count or spare == 0 else spare


@register_jitable
def name_neurons(table, base, bytes_per_row, first, count, spare):
    for j in range(padded(count)):
        table[j] = base + (first + min(j, count - 1)) * bytes_per_row if j < count or spare == 0 else spare


@register_jitable
def add_bias(u, bias, first, count, stride):
    if bias.shape[0] > 0:
        for j in range(count):
            for t in range(stride):
                u[j * stride + t] += bias[first + j]


@register_jitable
def name_rows(table, base, bytes_per_row, index, order):
    """The addresses of rows that lie anywhere; the table ends with rows that may be fetched ahead."""
    for j in range(order.shape[0]):
        table[j] = base + index[order[j]] * bytes_per_row
    table[order.shape[0] :] = base


@register_jitable
def add_bias_at(u, bias, index, order):
    if bias.shape[0] > 0:
        for j in range(order.shape[0]):
            u[j] += bias[index[order[j]]]


@register_jitable
def chunk_size(d):
    """The neurons whose rows all tokens of a block use: as many as fit the first cache, more if not even eight fit."""
    few = 8192 // max(d, 1) & ~3
    return 16 if few < 8 else min(16, few)


@register_jitable
def _forward_one(a, x, y, low, high, gate, b_in, b_gate):
    """Add to y the output of neurons low to high for one token at x, whose pathway has this gate."""
    d, size = a[D], a[SIZE]
    lanes, total = to_lanes(x, d, size), np.zeros(d, np.float32)
    u, v = np.empty(ALONE, np.float32), np.empty(ALONE if a[W_GATE] else 0, np.float32)
    for first in range(low, high, ALONE):
        few, there = min(ALONE, high - first), first * d * size
        dot_one(a[W_IN] + there, few, lanes.ctypes.data, d, u.ctypes.data, size)
        add_bias(u, b_in, first, few, 1)
        if a[W_GATE]:
            dot_one(a[W_GATE] + there, few, lanes.ctypes.data, d, v.ctypes.data, size)
            add_bias(v, b_gate, first, few, 1)
            activate(v, a[CODE], few)
            for j in range(few):
                u[j] *= v[j]
        else:
            activate(u, a[CODE], few)
        for j in range(few):
            u[j] *= gate
        sum_one(a[W_OUT] + there, few, u.ctypes.data, d, total.ctypes.data, size)
    add_lanes(y, total, size)
    keep(lanes, u, v)


@register_jitable
def _neurons_of(a, chosen, gates, index, factors):
    """Write the neurons of one token's chosen pathways, and the gate of each; returns how many."""
    count = 0
    for p in range(a[P]):
        begin, m = a[OFFSETS + p], a[OFFSETS + p + 1] - a[OFFSETS + p]
        for j in range(m):  # written over if p was not chosen; a branch would be guessed wrong half the time
            index[count + j], factors[count + j] = begin + j, gates[p]
        count += m * int(chosen[p])
    return count


@register_jitable
def _forward_alone(a, chosen, gates, b_in, b_gate, thread, threads):
    """Add to Y this thread's share of the chosen neurons of the only token, whatever pathways they belong to."""
    stay_apart()
    d, size, f = a[D], a[SIZE], a[OFFSETS + a[P]]
    every, factors = np.empty(f, np.int64), np.empty(f, np.float32)
    total = _neurons_of(a, chosen, gates, every, factors)
    low, high = total * thread // threads, total * (thread + 1) // threads
    index, count = every[low:high], high - low
    apart = count // ROWS
    order, table = np.empty(count, np.int64), np.empty(count + ROWS, np.int64)
    for j in range(count):  # a tile's rows lie far apart, as in `single`
        order[j] = j // ROWS + j % ROWS * apart if j < apart * ROWS else j
    lanes, y = to_lanes(a[X], d, size), np.zeros(d, np.float32)
    u, v = np.empty(count, np.float32), np.empty(count if a[W_GATE] else 0, np.float32)
    name_rows(table, a[W_IN], size * d, index, order)
    dot_rows_at(table.ctypes.data, count, lanes.ctypes.data, d, u.ctypes.data, size)
    add_bias_at(u, b_in, index, order)
    if a[W_GATE]:
        name_rows(table, a[W_GATE], size * d, index, order)
        dot_rows_at(table.ctypes.data, count, lanes.ctypes.data, d, v.ctypes.data, size)
        add_bias_at(v, b_gate, index, order)
        activate(v, a[CODE], count)
        for j in range(count):
            u[j] *= v[j]
    else:
        activate(u, a[CODE], count)
    for j in range(count):
        u[j] *= factors[low + order[j]]
    name_rows(table, a[W_OUT], size * d, index, order)
    add_rows_at(table.ctypes.data, count, u.ctypes.data, d, y.ctypes.data, size)
    add_lanes(a[Y] + thread * d * 4, y, size)
    keep(table, lanes, y, u, v)


@register_jitable
def forward_token(a, chosen, gates, thread, threads):
    """Add to Y this thread's share of the output of the only token."""
    d, size, f = a[D], a[SIZE], a[OFFSETS + a[P]]
    b_in, b_gate = numbers(a[B_IN], f, size), numbers(a[B_GATE], f, size)
    if f < WIDE * a[P]:
        _forward_alone(a, chosen, gates, b_in, b_gate, thread, threads)
        return
    for p in range(a[P]):
        begin, m = a[OFFSETS + p], a[OFFSETS + p + 1] - a[OFFSETS + p]
        low, high = begin + share(m, p, thread, threads), begin + share(m, p, thread + 1, threads)
        if chosen[p] and high > low:
            _forward_one(a, a[X], a[Y] + thread * d * 4, low, high, gates[p], b_in, b_gate)


@register_jitable
def forward(a, thread, threads):
    """Add the outputs to Y [threads, n, d]."""
    n, d, size = a[N], a[D], a[SIZE]
    chosen, gates = carray(bytes_at(a[CHOSEN]), (n, a[P])), carray(floats(a[GATES]), (n, a[P]))
    if n == 1:
        forward_token(a, chosen[0], gates[0], thread, threads)
        return
    b_in, b_gate = numbers(a[B_IN], a[OFFSETS + a[P]], size), numbers(a[B_GATE], a[OFFSETS + a[P]], size)
    y = a[Y] + thread * n * d * 4
    tokens, g, spare = np.empty(n, np.int64), np.empty(BLOCK, np.float32), np.zeros(d, np.float32)
    xs, ys = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    w_in, w_gate, w_out = np.empty(16, np.int64), np.empty(16, np.int64), np.empty(16, np.int64)
    u, v = np.empty(16 * BLOCK, np.float32), np.empty(16 * BLOCK, np.float32)
    for p in range(a[P]):
        begin, m = a[OFFSETS + p], a[OFFSETS + p + 1] - a[OFFSETS + p]
        low, high = begin + share(m, p, thread, threads), begin + share(m, p, thread + 1, threads)
        r = tokens_of(chosen, p, tokens)
        chunk, most = chunk_size(d), BLOCK if d < 2048 else BLOCK // 2
        for start in range(0, r if high > low else 0, most):
            block = tokens[start : min(start + most, r)]
            count = block.shape[0]
            if count == 1:
                t = block[0]
                _forward_one(a, a[X] + 4 * d * t, y + 4 * d * t, low, high, gates[t, p], b_in, b_gate)
                continue
            stride = padded(count)
            ahead = size * d if count > 4 else 0  # with fewer tokens, fetching ahead costs more than it saves
            name_tokens(xs, a[X], 4 * d, block, 0)
            name_tokens(ys, y, 4 * d, block, spare.ctypes.data)
            for t in range(stride):
                g[t] = gates[block[t], p] if t < count else np.float32(0)
            for first in range(low, high, chunk):
                few = min(chunk, high - first)
                name_neurons(w_in, a[W_IN], size * d, first, few, 0)
                name_neurons(w_out, a[W_OUT], size * d, first, few, 0)
                after = (w_out[0], w_out[0] + ahead * few)
                dot_rows(w_in.ctypes.data, xs.ctypes.data, few, count, d, u.ctypes.data, stride, size, after)
                add_bias(u, b_in, first, few, stride)
                if a[W_GATE]:
                    name_neurons(w_gate, a[W_GATE], size * d, first, few, 0)
                    dot_rows(w_gate.ctypes.data, xs.ctypes.data, few, count, d, v.ctypes.data, stride, size, NOTHING)
                    add_bias(v, b_gate, first, few, stride)
                    activate(v, a[CODE], few * stride)
                    for i in range(few * stride):
                        u[i] *= v[i]
                else:
                    activate(u, a[CODE], few * stride)
                for j in range(few):
                    for t in range(stride):
                        u[j * stride + t] *= g[t]
                after = (w_in[0] + ahead * few, w_in[0] + ahead * min(2 * few, high - first))
                sum_rows(ys.ctypes.data, w_out.ctypes.data, count, few, d, u.ctypes.data, stride, 1, size, after)


@njit
def forward_loop(a, thread, threads):
    forward(a, thread, threads)
