"""Routed MLP on the CPU's tile registers (AMX): bfloat16, faster than vectors from eight tokens on.

Weights are read in place. The up-projection takes a pathway's neurons as the left operand, so that only its tokens,
which are gathered anyway, need packing. Their activations come out neuron by neuron and become the left operand of the
down-projection, for which pairs of rows of W_out are interleaved on the way.

Shapes: n tokens, d model, f neurons, p pathways; inside a pathway: r tokens that chose it, m neurons.
"""

import numpy as np
import torch
from numba import carray
from numba.extending import register_jitable
from torch import Tensor

from slms.kernels.call import Call
from slms.kernels.cpu import loops
from slms.kernels.cpu.amx_tiles import TILE, begin_tiles, end_tiles, pack_hidden, pack_rows
from slms.kernels.cpu.choice import choose, tile_scores
from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.memory import bytes_at, floats, keep, narrow, numbers
from slms.kernels.cpu.operands import add_products, aligned, pack_some, up, whole, whole_rows
from slms.kernels.cpu.pointwise import activate
from slms.kernels.cpu.rows import MEMBERS, arguments_of, as_float, contiguous, run, take_part
from slms.kernels.cpu.team import team_size

TOKENS = 512  # tokens whose inputs and sums stay in the second cache


@register_jitable
def add_pathways(a, low, chosen, gates, y):
    """Add to y [t, d] the outputs of the t tokens, at most TOKENS, from `low` on; chosen and gates are [t, p]."""
    (count, n_pathways), d, f = chosen.shape, a[loops.D], a[loops.OFFSETS + a[loops.P]]
    b_in, b_gate = numbers(a[loops.B_IN], f, 2), numbers(a[loops.B_GATE], f, 2)
    most, odd = 0, d % 32 > 0
    for p in range(n_pathways):
        m = a[loops.OFFSETS + p + 1] - a[loops.OFFSETS + p]
        most, odd = max(most, m), odd or m % 32 > 0
    wide, block, neurons = whole(d), whole(count), whole(most)
    copies = np.empty((3, neurons * wide + 32 if odd else 32), np.uint16)
    packed, hidden = np.empty(block * wide + 32, np.uint16), np.empty(block * neurons + 32, np.uint16)
    right, padding, zeros = (
        np.empty(neurons * wide + 32, np.uint16),
        np.empty(16 * wide, np.uint16),
        np.zeros(d, np.uint16),
    )
    tokens, g, squares = np.empty(block, np.int64), np.empty(block, np.float32), np.empty(3 * 32 * 32 + 16, np.float32)
    packed_at, hidden_at, right_at, u_at = aligned(packed), aligned(hidden), aligned(right), aligned(squares)
    v_at, sums_at = u_at + 4 * TILE, u_at + 8 * TILE
    u, v = carray(floats(u_at), (32 * 32,)), carray(floats(v_at), (32 * 32,))
    for p in range(n_pathways):
        begin, m = a[loops.OFFSETS + p], a[loops.OFFSETS + p + 1] - a[loops.OFFSETS + p]
        r = loops.tokens_of(chosen, p, tokens)
        if r == 0 or m == 0:
            continue
        for t in range(whole(r)):
            g[t] = gates[tokens[t], p] if t < r else np.float32(0)
        chunks = whole(m) // 32
        w_in = whole_rows(a[loops.W_IN], begin, m, d, copies[0])
        w_gate = whole_rows(a[loops.W_GATE], begin, m, d, copies[1]) if a[loops.W_GATE] else 0
        w_out = whole_rows(a[loops.W_OUT], begin, m, d, copies[2])
        pack_some(a[loops.X] + 2 * d * low, tokens[:r], d, zeros.ctypes.data, padding.ctypes.data, packed_at)
        for c in range(chunks):
            few, rows = min(32, m - 32 * c), 64 * c * wide
            for t in range(0, r, 32):
                stride, x = 32 if r - t > 16 else 16, packed_at + 2 * t * wide
                up(w_in + rows, x, stride // 16, wide, u_at, stride)
                loops.add_bias(u, b_in, begin + 32 * c, few, stride)
                if a[loops.W_GATE]:
                    up(w_gate + rows, x, stride // 16, wide, v_at, stride)
                    loops.add_bias(v, b_gate, begin + 32 * c, few, stride)
                    activate(v, a[loops.CODE], 32 * stride)
                    for i in range(32 * stride):
                        u[i] *= v[i]
                else:
                    activate(u, a[loops.CODE], 32 * stride)
                for i in range(t, t + stride, 16):
                    out = hidden_at + (i // 16 * chunks + c) * TILE
                    pack_hidden(u_at + 4 * (i - t), 4 * stride, g.ctypes.data + 4 * i, out)
        for c in range(chunks):
            pack_rows(w_out + 64 * c * wide, wide, right_at + 2 * TILE * c, 2 * TILE * chunks)
        add_products(hidden_at, right_at, chunks, tokens[:r], d, y, sums_at)
    keep(copies, packed, hidden, right, padding, zeros, g, squares)


@njit
def tiles_loop(a, thread, threads):
    """Compute Y [n, d] for this thread's share of the tokens, by the router if there is one, else by CHOSEN and GATES.

    X and Y are bfloat16.
    """
    n, p, d = a[loops.N], a[loops.P], a[loops.D]
    low, high = n * thread // threads, n * (thread + 1) // threads
    begin_tiles()
    for start in range(low, high, TOKENS):
        count = min(TOKENS, high - start)
        y = np.zeros((count, d), np.float32)
        chosen, gates = np.empty((count, p), np.uint8), np.empty((count, p), np.float32)
        if a[loops.ROUTER_OUT]:
            choose(a, tile_scores, start, chosen, gates, y)
        else:
            all_chosen, all_gates = carray(bytes_at(a[loops.CHOSEN]), (n, p)), carray(floats(a[loops.GATES]), (n, p))
            for t in range(count):
                for q in range(p):
                    chosen[t, q], gates[t, q] = all_chosen[start + t, q], all_gates[start + t, q]
        add_pathways(a, start, chosen, gates, y)
        narrow(y.ctypes.data, a[loops.Y] + 2 * start * d, count * d)
        keep(y)
    end_tiles()


def tiles_member(arguments):
    take_part(tiles_loop, arguments)


MEMBERS[tiles_loop] = tiles_member


def amx_forward(call: Call) -> Tensor:
    """The same function as `kernels.cpu.grouped.grouped_forward`, for bfloat16, accumulated in float32."""
    y = torch.empty(call.x.shape, dtype=call.x.dtype)
    # Held here, because the loop knows only addresses.
    held = (*map(contiguous, (call.x, *call.weights)), as_float(call.gates), call.chosen.contiguous(), y)
    run(tiles_loop, team_size(call.W_in.nbytes * len(y)), arguments_of(call, 2, held))
    return y
