"""The compiled loops (numba) of a routed MLP on the CPU, and what they are told; `kernels.rows` launches them.

Library products cost more to start than a few tokens' work takes, and pack the weights of every pathway anew. Here one
loop goes over the pathways; in each, over blocks of its tokens and chunks of its neurons that stay in the first cache,
up, activation, gate and down without leaving them. The backward pass computes hidden activations again.

Shapes: n tokens, d model, f neurons, p pathways; inside a pathway: r tokens that chose it.
"""

from typing import Any

import numba
import numpy as np
from numba import carray
from numba.extending import register_jitable

from kernels.pointwise import activate, activate_and_derive
from kernels.vectors import MATH, bytes_at, dots, fetch_share, floats, numbers, sums

BLOCK = 128  # tokens whose inputs and outputs stay in the second cache
OPTIONS: dict[str, Any] = dict(nogil=True, cache=True, fastmath=set(MATH), error_model="numpy")

dots_4, dots_2, dots_1 = (dots(4, tokens) for tokens in (4, 2, 1))
dots_4h, dots_2h, dots_1h = (dots(4, tokens, half=True) for tokens in (4, 2, 1))
sums_4, sums_2, sums_1 = sums(4, 4), sums(2, 8), sums(1, 8)
sums_4h, sums_2h, sums_1h = sums(4, 4, half=True), sums(2, 8, half=True), sums(1, 8, half=True)

# What a loop is told: numbers and addresses, then the offsets. 0 stands for an input that is None.
N, D, P, CODE, SIZE, THREAD, THREADS, X, W_IN, B_IN, W_GATE, B_GATE, W_OUT, GATES, CHOSEN, Y = range(16)
GRAD, D_X, D_W_IN, D_B_IN, D_W_GATE, D_B_GATE, D_W_OUT, D_GATES = range(15, 23)
ROUTER_IN, ROUTER_B_IN, ROUTER_OUT, ROUTER_B_OUT, WIDTH, K, GATE, RAMP, BIAS, B_OUT, MEAN = range(23, 34)
OFFSETS = 34


@register_jitable
def dot_rows(rows, tokens, n_rows, n_tokens, d, out, stride, size, ahead=0, ahead_end=0):
    """out[j · stride + t] = row_j · token_t; tables and out are padded to multiples of four.

    ahead, ahead_end: memory that will be wanted next, fetched meanwhile: 5 % of a large call.
    """
    for t in range(0, n_tokens, 4):
        left = n_tokens - t
        fetch_share(ahead, ahead_end, t, n_tokens)
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
def sum_rows(out, rows, n_out, n_rows, d, factors, by_row, by_out, size, ahead=0, ahead_end=0):
    """out_t += Σ_k factors[k · by_row + t · by_out] row_k; the table out is padded to a multiple of four."""
    for t in range(0, n_out, 4):
        left, o, f = n_out - t, out + 8 * t, factors + 4 * t * by_out
        fetch_share(ahead, ahead_end, t, n_out)
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
def keep(*arrays):
    """Numba frees an array after the last use of its name, which an address taken from it does not count as."""


@register_jitable
def padded(count):
    return (count + 3) & ~3


@register_jitable
def tokens_of(chosen, p, tokens):
    """Writes the tokens that chose pathway p, ascending; returns how many."""
    r = 0
    for t in range(chosen.shape[0]):
        if chosen[t, p]:
            tokens[r] = t
            r += 1
    return r


@register_jitable
def name_tokens(table, base, bytes_per_row, tokens, spare):
    """Addresses of these tokens' rows; what pads the table names the spare row, or where there is none the last."""
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
def _chunk(d, r):
    """Neurons whose rows are used by all tokens of a block while they are in the first cache."""
    return 64 if r == 1 else max(8, min(16, 8192 // max(d, 1) & ~3))


@numba.njit(**OPTIONS)
def forward_loop(a, thread, threads):
    """Adds to Y [threads, n, d]."""
    n, d, size = a[N], a[D], a[SIZE]
    chosen, gates = carray(bytes_at(a[CHOSEN]), (n, a[P])), carray(floats(a[GATES]), (n, a[P]))
    b_in, b_gate = numbers(a[B_IN], a[OFFSETS + a[P]], size), numbers(a[B_GATE], a[OFFSETS + a[P]], size)
    y = a[Y] + thread * n * d * 4
    tokens, g, spare = np.empty(n, np.int64), np.empty(BLOCK, np.float32), np.zeros(d, np.float32)
    xs, ys = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    w_in, w_gate, w_out = np.empty(64, np.int64), np.empty(64, np.int64), np.empty(64, np.int64)
    u, v = np.empty(16 * BLOCK, np.float32), np.empty(16 * BLOCK, np.float32)
    for p in range(a[P]):
        begin, m = a[OFFSETS + p], a[OFFSETS + p + 1] - a[OFFSETS + p]
        low, high = begin + m * thread // threads, begin + m * (thread + 1) // threads
        r = tokens_of(chosen, p, tokens)
        chunk = _chunk(d, r)
        for start in range(0, r if high > low else 0, BLOCK):
            block = tokens[start : min(start + BLOCK, r)]
            count = block.shape[0]
            stride = 1 if count == 1 else padded(count)
            ahead = size * d if count > 4 else 0  # to fewer tokens fetching ahead costs more than it brings
            name_tokens(xs, a[X], 4 * d, block, 0)
            name_tokens(ys, y, 4 * d, block, spare.ctypes.data)
            for t in range(stride):
                g[t] = gates[block[t], p] if t < count else np.float32(0)
            for first in range(low, high, chunk):
                few = min(chunk, high - first)
                name_neurons(w_in, a[W_IN], size * d, first, few, 0)
                name_neurons(w_out, a[W_OUT], size * d, first, few, 0)
                dot_rows(
                    w_in.ctypes.data, xs.ctypes.data, few, count, d, u.ctypes.data, stride, size,
                    w_out[0], w_out[0] + ahead * few,
                )  # fmt: skip
                add_bias(u, b_in, first, few, stride)
                if a[W_GATE]:
                    name_neurons(w_gate, a[W_GATE], size * d, first, few, 0)
                    dot_rows(w_gate.ctypes.data, xs.ctypes.data, few, count, d, v.ctypes.data, stride, size)
                    add_bias(v, b_gate, first, few, stride)
                    activate(v, a[CODE], few * stride)
                    for i in range(few * stride):
                        u[i] *= v[i]
                else:
                    activate(u, a[CODE], few * stride)
                for j in range(few):
                    for t in range(stride):
                        u[j * stride + t] *= g[t]
                sum_rows(
                    ys.ctypes.data, w_out.ctypes.data, count, few, d, u.ctypes.data, stride, 1, size,
                    w_in[0] + ahead * few, w_in[0] + ahead * min(2 * few, high - first),
                )  # fmt: skip


@numba.njit(**OPTIONS)
def backward_loop(a, thread, threads):
    """Adds to D_X [threads, n, d] and D_GATES [threads, n, p]; writes this thread's rows of every weight's gradient.

    With u = x W_inᵀ + b_in, v = x W_gateᵀ + b_gate, h = act(u) or act(v) ⊙ u, e = grad W_outᵀ (before the gate):
    d gate = ⟨h, e⟩, dh = gate · e, dW_out = (gate · h)ᵀ grad; du, dv from dh; dW_in = duᵀ x; dx = du W_in + dv W_gate.
    """
    n, d, code = a[N], a[D], a[CODE]
    row = 4 * d
    chosen, gates = carray(bytes_at(a[CHOSEN]), (n, a[P])), carray(floats(a[GATES]), (n, a[P]))
    d_gates = carray(floats(a[D_GATES] + thread * n * a[P] * 4), (n, a[P]))
    d_x = a[D_X] + thread * n * row
    f = a[OFFSETS + a[P]]
    gated = a[W_GATE] != 0
    b_in, b_gate = numbers(a[B_IN], f, 4), numbers(a[B_GATE], f, 4)
    d_in, d_out = carray(floats(a[D_W_IN]), (f, d)), carray(floats(a[D_W_OUT]), (f, d))
    d_gate = carray(floats(a[D_W_GATE]), (f if gated else 0, d))
    db_in = carray(floats(a[D_B_IN]), (f if a[B_IN] else 0,))
    db_gate = carray(floats(a[D_B_GATE]), (f if a[B_GATE] else 0,))
    tokens, g, spare = np.empty(n, np.int64), np.empty(BLOCK, np.float32), np.zeros(d, np.float32)
    xs, gs, dxs = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    w, dw = np.empty(16, np.int64), np.empty(16, np.int64)
    u, v, e = np.empty(16 * BLOCK, np.float32), np.empty(16 * BLOCK, np.float32), np.empty(16 * BLOCK, np.float32)
    slope, dg = np.empty(16 * BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for p in range(a[P]):
        begin, m = a[OFFSETS + p], a[OFFSETS + p + 1] - a[OFFSETS + p]
        low, high = begin + m * thread // threads, begin + m * (thread + 1) // threads
        d_in[low:high] = 0
        d_out[low:high] = 0
        if a[B_IN]:
            db_in[low:high] = 0
        if gated:
            d_gate[low:high] = 0
            if a[B_GATE]:
                db_gate[low:high] = 0
        r = tokens_of(chosen, p, tokens)
        chunk = max(8, min(16, 8192 // d & ~3))
        for start in range(0, r if high > low else 0, BLOCK):
            block = tokens[start : min(start + BLOCK, r)]
            count = block.shape[0]
            stride = padded(count)
            name_tokens(xs, a[X], row, block, 0)
            name_tokens(gs, a[GRAD], row, block, 0)
            name_tokens(dxs, d_x, row, block, spare.ctypes.data)
            for t in range(stride):
                g[t] = gates[block[t], p] if t < count else np.float32(0)
            dg[:stride] = 0
            for first in range(low, high, chunk):
                few = min(chunk, high - first)
                size = few * stride
                name_neurons(w, a[W_IN], row, first, few, 0)
                there = (first * row, (first + few) * row) if count > 4 else (0, 0)  # this chunk's rows, in any matrix
                out = a[W_OUT]
                dot_rows(
                    w.ctypes.data, xs.ctypes.data, few, count, d, u.ctypes.data, stride, 4,
                    out + there[0], out + there[1],
                )  # fmt: skip
                add_bias(u, b_in, first, few, stride)
                if gated:
                    name_neurons(w, a[W_GATE], row, first, few, 0)
                    dot_rows(w.ctypes.data, xs.ctypes.data, few, count, d, v.ctypes.data, stride, 4)
                    add_bias(v, b_gate, first, few, stride)
                    activate_and_derive(v, slope, code, size)  # v = act(v)
                else:
                    activate_and_derive(u, slope, code, size)  # u = h
                name_neurons(w, a[W_OUT], row, first, few, 0)
                out = a[D_W_OUT]
                dot_rows(
                    w.ctypes.data, gs.ctypes.data, few, count, d, e.ctypes.data, stride, 4,
                    out + there[0], out + there[1],
                )  # fmt: skip
                for j in range(few):
                    for t in range(stride):
                        i = j * stride + t
                        h = u[i] * v[i] if gated else u[i]
                        de = g[t] * e[i]
                        dg[t] += h * e[i]
                        if gated:
                            slope[i] *= de * u[i]  # dv
                            e[i] = de * v[i]  # du
                        else:
                            e[i] = de * slope[i]
                        u[i] = h * g[t]
                name_neurons(dw, a[D_W_OUT], row, first, few, spare.ctypes.data)
                sum_rows(
                    dw.ctypes.data, gs.ctypes.data, few, count, d, u.ctypes.data, 1, stride, 4,
                    a[D_W_IN] + there[0], a[D_W_IN] + there[1],
                )  # fmt: skip
                name_neurons(dw, a[D_W_IN], row, first, few, spare.ctypes.data)
                sum_rows(dw.ctypes.data, xs.ctypes.data, few, count, d, e.ctypes.data, 1, stride, 4)
                name_neurons(w, a[W_IN], row, first, few, 0)
                sum_rows(
                    dxs.ctypes.data, w.ctypes.data, count, few, d, e.ctypes.data, stride, 1, 4,
                    a[W_IN] + there[1], a[W_IN] + there[1] + there[1] - there[0],
                )  # fmt: skip
                if a[B_IN]:
                    for j in range(few):
                        for t in range(count):
                            db_in[first + j] += e[j * stride + t]
                if gated:
                    name_neurons(dw, a[D_W_GATE], row, first, few, spare.ctypes.data)
                    sum_rows(dw.ctypes.data, xs.ctypes.data, few, count, d, slope.ctypes.data, 1, stride, 4)
                    name_neurons(w, a[W_GATE], row, first, few, 0)
                    sum_rows(dxs.ctypes.data, w.ctypes.data, count, few, d, slope.ctypes.data, stride, 1, 4)
                    if a[B_GATE]:
                        for j in range(few):
                            for t in range(count):
                                db_gate[first + j] += slope[j * stride + t]
            for t in range(count):
                d_gates[block[t], p] += dg[t]
