"""The compiled backward loop of a routed MLP on the CPU: hidden activations are formed again, block by block.

Shapes: n tokens, d model, f neurons, p pathways; inside a pathway: r tokens that chose it.
"""

import numpy as np
from numba import carray

from kernels.cpu.compiled import njit
from kernels.cpu.loops import (
    B_GATE,
    B_IN,
    BLOCK,
    CHOSEN,
    CODE,
    D_B_GATE,
    D_B_IN,
    D_GATES,
    D_W_GATE,
    D_W_IN,
    D_W_OUT,
    D_X,
    GATES,
    GRAD,
    OFFSETS,
    W_GATE,
    W_IN,
    W_OUT,
    D,
    N,
    P,
    X,
    add_bias,
    chunk_size,
    dot_rows,
    name_neurons,
    name_tokens,
    padded,
    sum_rows,
    tokens_of,
)
from kernels.cpu.memory import bytes_at, floats, numbers
from kernels.cpu.pointwise import activate_and_derive


@njit
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
        chunk, most = chunk_size(d), BLOCK if d < 1024 else BLOCK // 2
        for start in range(0, r if high > low else 0, most):
            block = tokens[start : min(start + most, r)]
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
                    dot_rows(w.ctypes.data, xs.ctypes.data, few, count, d, v.ctypes.data, stride, 4, 0, 0)
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
                sum_rows(dw.ctypes.data, xs.ctypes.data, few, count, d, e.ctypes.data, 1, stride, 4, 0, 0)
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
                    sum_rows(dw.ctypes.data, xs.ctypes.data, few, count, d, slope.ctypes.data, 1, stride, 4, 0, 0)
                    name_neurons(w, a[W_GATE], row, first, few, 0)
                    sum_rows(dxs.ctypes.data, w.ctypes.data, count, few, d, slope.ctypes.data, stride, 1, 4, 0, 0)
                    if a[B_GATE]:
                        for j in range(few):
                            for t in range(count):
                                db_gate[first + j] += slope[j * stride + t]
            for t in range(count):
                d_gates[block[t], p] += dg[t]
