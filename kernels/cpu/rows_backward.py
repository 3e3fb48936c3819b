"""The compiled backward loop of a routed MLP on the CPU, which recomputes hidden activations block by block.

Shapes: n tokens, d model, f neurons, p pathways; inside a pathway: r tokens that chose it.
"""

import numpy as np
from numba import carray

from slms.kernels.cpu import loops
from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.loops import BLOCK, NOTHING, add_bias, dot_rows, name_neurons, sum_rows
from slms.kernels.cpu.memory import bytes_at, floats, numbers
from slms.kernels.cpu.pointwise import activate_and_derive


@njit
def backward_loop(a, thread, threads):
    """Add to D_X [threads, n, d] and D_GATES [threads, n, p], and write this thread's rows of every weight's gradient.

    With u = x W_inᵀ + b_in, v = x W_gateᵀ + b_gate, h = act(u) or act(v) ⊙ u, e = grad W_outᵀ (before the gate):
    d gate = ⟨h, e⟩, dh = gate · e, dW_out = (gate · h)ᵀ grad; du, dv from dh; dW_in = duᵀ x; dx = du W_in + dv W_gate.
    """
    n, d, code = a[loops.N], a[loops.D], a[loops.CODE]
    row = 4 * d
    chosen, gates = carray(bytes_at(a[loops.CHOSEN]), (n, a[loops.P])), carray(floats(a[loops.GATES]), (n, a[loops.P]))
    d_gates = carray(floats(a[loops.D_GATES] + thread * n * a[loops.P] * 4), (n, a[loops.P]))
    d_x = a[loops.D_X] + thread * n * row
    f = a[loops.OFFSETS + a[loops.P]]
    gated = a[loops.W_GATE] != 0
    b_in, b_gate = numbers(a[loops.B_IN], f, 4), numbers(a[loops.B_GATE], f, 4)
    d_in, d_out = carray(floats(a[loops.D_W_IN]), (f, d)), carray(floats(a[loops.D_W_OUT]), (f, d))
    d_gate = carray(floats(a[loops.D_W_GATE]), (f if gated else 0, d))
    db_in = carray(floats(a[loops.D_B_IN]), (f if a[loops.B_IN] else 0,))
    db_gate = carray(floats(a[loops.D_B_GATE]), (f if a[loops.B_GATE] else 0,))
    tokens, g, spare = np.empty(n, np.int64), np.empty(BLOCK, np.float32), np.zeros(d, np.float32)
    xs, gs, dxs = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    w, dw = np.empty(16, np.int64), np.empty(16, np.int64)
    u, v, e = np.empty(16 * BLOCK, np.float32), np.empty(16 * BLOCK, np.float32), np.empty(16 * BLOCK, np.float32)
    slope, dg = np.empty(16 * BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for p in range(a[loops.P]):
        begin, m = a[loops.OFFSETS + p], a[loops.OFFSETS + p + 1] - a[loops.OFFSETS + p]
        low, high = begin + loops.share(m, p, thread, threads), begin + loops.share(m, p, thread + 1, threads)
        d_in[low:high] = 0
        d_out[low:high] = 0
        if a[loops.B_IN]:
            db_in[low:high] = 0
        if gated:
            d_gate[low:high] = 0
            if a[loops.B_GATE]:
                db_gate[low:high] = 0
        r = loops.tokens_of(chosen, p, tokens)
        chunk, most = loops.chunk_size(d), BLOCK if d < 1024 else BLOCK // 2
        for start in range(0, r if high > low else 0, most):
            block = tokens[start : min(start + most, r)]
            count = block.shape[0]
            stride = loops.padded(count)
            loops.name_tokens(xs, a[loops.X], row, block, 0)
            loops.name_tokens(gs, a[loops.GRAD], row, block, 0)
            loops.name_tokens(dxs, d_x, row, block, spare.ctypes.data)
            for t in range(stride):
                g[t] = gates[block[t], p] if t < count else np.float32(0)
            dg[:stride] = 0
            for first in range(low, high, chunk):
                few = min(chunk, high - first)
                size = few * stride
                name_neurons(w, a[loops.W_IN], row, first, few, 0)
                there = (first * row, (first + few) * row) if count > 4 else NOTHING  # this chunk's rows, in any matrix
                after = (a[loops.W_OUT] + there[0], a[loops.W_OUT] + there[1])
                dot_rows(w.ctypes.data, xs.ctypes.data, few, count, d, u.ctypes.data, stride, 4, after)
                add_bias(u, b_in, first, few, stride)
                if gated:
                    name_neurons(w, a[loops.W_GATE], row, first, few, 0)
                    dot_rows(w.ctypes.data, xs.ctypes.data, few, count, d, v.ctypes.data, stride, 4, NOTHING)
                    add_bias(v, b_gate, first, few, stride)
                    activate_and_derive(v, slope, code, size)  # v = act(v)
                else:
                    activate_and_derive(u, slope, code, size)  # u = h
                name_neurons(w, a[loops.W_OUT], row, first, few, 0)
                after = (a[loops.D_W_OUT] + there[0], a[loops.D_W_OUT] + there[1])
                dot_rows(w.ctypes.data, gs.ctypes.data, few, count, d, e.ctypes.data, stride, 4, after)
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
                name_neurons(dw, a[loops.D_W_OUT], row, first, few, spare.ctypes.data)
                after = (a[loops.D_W_IN] + there[0], a[loops.D_W_IN] + there[1])
                sum_rows(dw.ctypes.data, gs.ctypes.data, few, count, d, u.ctypes.data, 1, stride, 4, after)
                name_neurons(dw, a[loops.D_W_IN], row, first, few, spare.ctypes.data)
                sum_rows(dw.ctypes.data, xs.ctypes.data, few, count, d, e.ctypes.data, 1, stride, 4, NOTHING)
                name_neurons(w, a[loops.W_IN], row, first, few, 0)
                after = (a[loops.W_IN] + there[1], a[loops.W_IN] + there[1] + there[1] - there[0])
                sum_rows(dxs.ctypes.data, w.ctypes.data, count, few, d, e.ctypes.data, stride, 1, 4, after)
                if a[loops.B_IN]:
                    for j in range(few):
                        for t in range(count):
                            db_in[first + j] += e[j * stride + t]
                if gated:
                    name_neurons(dw, a[loops.D_W_GATE], row, first, few, spare.ctypes.data)
                    sum_rows(dw.ctypes.data, xs.ctypes.data, few, count, d, slope.ctypes.data, 1, stride, 4, NOTHING)
                    name_neurons(w, a[loops.W_GATE], row, first, few, 0)
                    sum_rows(dxs.ctypes.data, w.ctypes.data, count, few, d, slope.ctypes.data, stride, 1, 4, NOTHING)
                    if a[loops.B_GATE]:
                        for j in range(few):
                            for t in range(count):
                                db_gate[first + j] += slope[j * stride + t]
            for t in range(count):
                d_gates[block[t], p] += dg[t]
