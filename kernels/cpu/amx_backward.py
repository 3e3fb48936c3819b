"""The gradients of a routed MLP in bfloat16 on the CPU's tile registers (AMX); hidden activations are recomputed.

Hidden activations come out neuron by neuron, as in `amx`. Rounded in place, they are the left operand of the weights'
gradients, whose right operand is pairs of tokens' rows; transposed, they are the left operand of the inputs' gradient.

Shapes: n tokens, d model, f neurons, p pathways; inside a pathway: r tokens that chose it, m neurons.
"""

from itertools import pairwise

import numpy as np
import torch
from numba import carray
from numba.extending import register_jitable
from torch import Tensor

from slms.kernels.call import Call, Gradients
from slms.kernels.cpu import loops
from slms.kernels.cpu.amx_tiles import TILE, begin_tiles, end_tiles, pack_hidden, pack_left, pack_rows
from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.memory import bytes_at, floats, halves, keep, narrow, numbers
from slms.kernels.cpu.operands import add_products, aligned, pack_pairs, pack_some, tiles_2_2, up, whole, whole_rows
from slms.kernels.cpu.pointwise import activate_and_derive
from slms.kernels.cpu.rows import MEMBERS, arguments_of, as_float, contiguous, empty_like_weights, run, take_part
from slms.kernels.cpu.team import team_size


@register_jitable
def weight_gradient(left, right, steps, first, few, d, target, sums):
    """Write rows first to first + few of a gradient [f, d]: 32 neurons times tokens, tokens times d."""
    for column in range(0, d, 32):
        tiles_2_2(left, 64, TILE, 2 * TILE, right + 64 * steps * column, TILE, 2 * TILE, steps, sums, 128)
        for j in range(few):
            narrow(sums + 128 * j, target + 2 * ((first + j) * d + column), min(32, d - column))


@register_jitable
def multiply_gates(u, v, e, slope, g, dg, gated):
    """For 32 neurons × 32 tokens: u = gate · h, e = du, slope = dv; adds to dg. `rows_backward` has the equations."""
    for j in range(32):
        for i in range(32):
            k = 32 * j + i
            h = u[k] * v[k] if gated else u[k]
            de = g[i] * e[k]
            dg[i] += h * e[k]
            if gated:
                slope[k] *= de * u[k]
                e[k] = de * v[k]
            else:
                e[k] = de * slope[k]
            u[k] = h * g[i]


@register_jitable
def clear(target, count):
    """Write `count` bfloat16 zeros to an address."""
    numbers = carray(halves(target), (count,))
    for i in range(count):
        numbers[i] = 0


@njit
def backward_tiles(a, thread, threads):
    """Add to D_X [threads, n, d] and D_GATES [n, p], and write the weights' gradients of this thread's pathways.

    X, GRAD, weights and their gradients are bfloat16.
    """
    n, d, n_pathways = a[loops.N], a[loops.D], a[loops.P]
    f, gated, wide = a[loops.OFFSETS + n_pathways], a[loops.W_GATE] != 0, whole(d)
    chosen, gates = carray(bytes_at(a[loops.CHOSEN]), (n, n_pathways)), carray(floats(a[loops.GATES]), (n, n_pathways))
    d_gates = carray(floats(a[loops.D_GATES]), (n, n_pathways))
    d_x = carray(floats(a[loops.D_X] + 4 * thread * n * d), (n, d))
    b_in, b_gate = numbers(a[loops.B_IN], f, 2), numbers(a[loops.B_GATE], f, 2)
    neurons, block, tokens = 0, 0, np.empty(n, np.int64)
    for p in range(thread, n_pathways, threads):
        neurons = max(neurons, whole(a[loops.OFFSETS + p + 1] - a[loops.OFFSETS + p]))
        block = max(block, whole(loops.tokens_of(chosen, p, tokens)))
    copies = np.empty((3, neurons * wide + 32), np.uint16)
    operands = np.empty((4, block * wide + 32), np.uint16)  # inputs and gradients, as columns and in pairs
    lefts, hidden = np.empty((3, block * 32 + 32), np.uint16), np.empty((2, block * neurons + 32), np.uint16)
    right, gathered = np.empty(neurons * wide + 32, np.uint16), np.empty(32 * wide + 32, np.uint16)
    zeros, squares = np.zeros(d, np.uint16), np.empty(5 * 1024 + 16, np.float32)
    g, dg, ones = np.empty(block, np.float32), np.empty(block, np.float32), np.ones(16, np.float32)
    db_in, db_gate = np.zeros(f, np.float32), np.zeros(f, np.float32)
    x_columns, x_pairs = aligned(operands[0]), aligned(operands[1])
    grad_columns, grad_pairs = aligned(operands[2]), aligned(operands[3])
    left_h, left_u, left_v = aligned(lefts[0]), aligned(lefts[1]), aligned(lefts[2])
    du, dv, right_at, gathered_at = aligned(hidden[0]), aligned(hidden[1]), aligned(right), aligned(gathered)
    u_at = aligned(squares)
    v_at, e_at, slope_at, sums = u_at + 4 * TILE, u_at + 8 * TILE, u_at + 12 * TILE, u_at + 16 * TILE
    u, v, e = carray(floats(u_at), (1024,)), carray(floats(v_at), (1024,)), carray(floats(e_at), (1024,))
    slope = carray(floats(slope_at), (1024,))
    begin_tiles()
    for p in range(thread, n_pathways, threads):
        begin, m = a[loops.OFFSETS + p], a[loops.OFFSETS + p + 1] - a[loops.OFFSETS + p]
        r = loops.tokens_of(chosen, p, tokens)
        chosen_tokens, steps, chunks = tokens[:r], whole(r) // 32, whole(m) // 32
        if r == 0 and m > 0:
            for target in (a[loops.D_W_IN], a[loops.D_W_OUT], a[loops.D_W_GATE]):
                if target != 0:
                    clear(target + 2 * begin * d, m * d)
        if r > 0 and m > 0:
            for t in range(whole(r)):
                g[t] = gates[tokens[t], p] if t < r else np.float32(0)
                dg[t] = 0
            w_in = whole_rows(a[loops.W_IN], begin, m, d, copies[0])
            w_gate = whole_rows(a[loops.W_GATE], begin, m, d, copies[1]) if gated else 0
            w_out = whole_rows(a[loops.W_OUT], begin, m, d, copies[2])
            tokens_packed = (a[loops.X], x_columns, x_pairs), (a[loops.GRAD], grad_columns, grad_pairs)
            for source, as_columns, as_pairs in tokens_packed:
                pack_some(source, chosen_tokens, d, zeros.ctypes.data, gathered_at, as_columns)
                pack_pairs(source, chosen_tokens, d, gathered_at, as_pairs)
            for c in range(chunks):
                first, few, rows = begin + 32 * c, min(32, m - 32 * c), 64 * c * wide
                for t in range(0, r, 32):
                    groups = 2 if r - t > 16 else 1
                    for i in range(1024 if groups == 1 else 0):
                        u[i], v[i], e[i] = 0, 0, 0
                    up(w_in + rows, x_columns + 2 * t * wide, groups, wide, u_at, 32)
                    up(w_out + rows, grad_columns + 2 * t * wide, groups, wide, e_at, 32)
                    loops.add_bias(u, b_in, first, few, 32)
                    if gated:
                        up(w_gate + rows, x_columns + 2 * t * wide, groups, wide, v_at, 32)
                        loops.add_bias(v, b_gate, first, few, 32)
                        activate_and_derive(v, slope, a[loops.CODE], 1024)  # v = act(v)
                    else:
                        activate_and_derive(u, slope, a[loops.CODE], 1024)  # u = h
                    multiply_gates(u, v, e, slope, g[t : t + 32], dg[t : t + 32], gated)
                    for j in range(few):
                        for i in range(32):
                            db_in[first + j] += e[32 * j + i]
                            db_gate[first + j] += slope[32 * j + i]  # meaningless if there is no gate
                    pack_left(u_at, left_h + 2 * TILE * (t // 32))
                    pack_left(e_at, left_u + 2 * TILE * (t // 32))
                    if gated:
                        pack_left(slope_at, left_v + 2 * TILE * (t // 32))
                    for i in range(2):
                        there = ((t // 16 + i) * chunks + c) * TILE
                        pack_hidden(e_at + 64 * i, 128, ones.ctypes.data, du + there)
                        if gated:
                            pack_hidden(slope_at + 64 * i, 128, ones.ctypes.data, dv + there)
                weight_gradient(left_h, grad_pairs, steps, first, few, d, a[loops.D_W_OUT], sums)
                weight_gradient(left_u, x_pairs, steps, first, few, d, a[loops.D_W_IN], sums)
                if gated:
                    weight_gradient(left_v, x_pairs, steps, first, few, d, a[loops.D_W_GATE], sums)
            for left, weights in ((du, w_in), (dv, w_gate)):
                if weights != 0:
                    for c in range(chunks):
                        pack_rows(weights + 64 * c * wide, wide, right_at + 2 * TILE * c, 2 * TILE * chunks)
                    add_products(left, right_at, chunks, chosen_tokens, d, d_x, sums)
            for t in range(r):
                d_gates[tokens[t], p] += dg[t]
        if a[loops.B_IN]:
            narrow(db_in.ctypes.data + 4 * begin, a[loops.D_B_IN] + 2 * begin, m)
        if a[loops.B_GATE]:
            narrow(db_gate.ctypes.data + 4 * begin, a[loops.D_B_GATE] + 2 * begin, m)
    end_tiles()
    keep(copies, operands, lefts, hidden, right, gathered, zeros, squares, g, dg, ones, db_in, db_gate)


def backward_tiles_member(arguments):
    take_part(backward_tiles, arguments)


MEMBERS[backward_tiles] = backward_tiles_member


def amx_backward(grad: Tensor, call: Call) -> Gradients:
    """The gradients of `kernels.cpu.amx.amx_forward`, as `kernels.cpu.grouped.grouped_backward` gives them."""
    x, (n, d) = call.x, call.x.shape
    most, neurons = int(call.chosen.sum(0).max()), max(b - a for a, b in pairwise(call.offsets))
    team = team_size(bytes_each=4 * n * d + 8 * most * d + 4 * most * neurons + 8 * neurons * d)
    inputs = (*map(contiguous, (x, *call.weights)), as_float(call.gates), call.chosen.contiguous(), contiguous(grad))
    d_x, d_gates = torch.zeros(team, n, d, dtype=torch.float32), torch.zeros(call.gates.shape, dtype=torch.float32)
    weights = empty_like_weights(call)
    written = [None if weight is None else made for weight, made in zip(call.weights, weights, strict=True)]
    run(backward_tiles, team, arguments_of(call, 2, (*inputs, d_x, *written, d_gates)))
    total = d_x[0] if team == 1 else d_x.sum(0)
    return Gradients._make([total.to(x.dtype), *weights, d_gates.to(call.gates.dtype)])
