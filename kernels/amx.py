"""Routed MLP on the CPU's tile registers (AMX): bfloat16, from eight tokens on faster than vectors.

Weights are read where they lie. The up-projection takes a pathway's neurons as the left operand, so that its tokens,
which are gathered anyway, are what is packed; their activations come out neuron by neuron and are turned into the left
operand of the down-projection, for which pairs of rows of W_out are interleaved on the way.

Shapes: n tokens, d model, f neurons, p pathways; inside a pathway: r tokens that chose it, m neurons.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numba import carray
from numba.extending import register_jitable
from torch import Tensor

from kernels import loops
from kernels.loops import keep
from kernels.pointwise import CODES, activate
from kernels.rows import MEMBERS, address, as_float, contiguous, packed, run, team_size, told
from kernels.tiles import TILE, add_row, begin_tiles, end_tiles, pack_hidden, pack_rows, pack_tokens, products
from kernels.vectors import bytes_at, call_for_int, floats, halves, numbers

TOKENS = 512  # whose inputs and sums stay in the second cache
tiles_2_2, tiles_2_1, tiles_1_2 = products(2, 2), products(2, 1), products(1, 2)


@register_jitable
def aligned(array):
    """The first address in an array that begins a line of the cache; arrays have one line more than is asked for."""
    return (array.ctypes.data + 63) & ~63


@register_jitable
def whole(count):
    return (count + 31) & ~31


@register_jitable
def whole_rows(address, first, count, d, copy):
    """Where `count` rows from `first` on lie, as whole tiles: in place, or with zeros around in `copy`."""
    wide = whole(d)
    if count == whole(count) and d == wide:
        return address + 2 * first * d
    start = aligned(copy)
    rows, stored = carray(halves(start), (whole(count), wide)), carray(halves(address + 2 * first * d), (count, d))
    rows[:] = 0
    for i in range(count):
        for j in range(d):
            rows[i, j] = stored[i, j]
    return start


@register_jitable
def spare_rows(count, d):
    return np.empty(whole(count) * whole(d) + 32 if count % 32 or d % 32 else 32, np.uint16)


@register_jitable
def pack_some(x, tokens, d, zeros, padding, out):
    """Right operands of these tokens' inputs, sixteen at a time."""
    table = np.empty(16, np.int64)
    wide = whole(d)
    r = tokens.shape[0]
    for t in range(0, r, 16):
        for i in range(16):
            table[i] = x + tokens[t + i] * 2 * d if t + i < r else zeros
        if d != wide:
            rows = carray(halves(padding), (16, wide))
            for i in range(16):
                stored = carray(halves(table[i]), (d,))
                for j in range(d):
                    rows[i, j] = stored[j]
                for j in range(d, wide):
                    rows[i, j] = 0
                table[i] = padding + 2 * i * wide
        pack_tokens(table.ctypes.data, wide, out + t * 2 * wide)
    keep(table)


@register_jitable
def up(rows, packed, groups, wide, u, stride):
    """u[j · stride + t] = row_j · token_t for 32 rows and one or two groups of 16 tokens."""
    if groups == 2:
        tiles_2_2(rows, 2 * wide, 32 * wide, 64, packed, 32 * wide, TILE, wide // 32, u, 4 * stride)
    else:
        tiles_2_1(rows, 2 * wide, 32 * wide, 64, packed, 32 * wide, TILE, wide // 32, u, 4 * stride)


@register_jitable
def add_pathways(a, low, high, chosen, gates):
    """Adds to rows low to high of Y [n, d]; of these rows are chosen and gates [high - low, p]. X is bfloat16."""
    d, n_pathways = a[loops.D], a[loops.P]
    f = a[loops.OFFSETS + n_pathways]
    b_in, b_gate = numbers(a[loops.B_IN], f, 2), numbers(a[loops.B_GATE], f, 2)
    most, odd = 0, d % 32 > 0
    for p in range(n_pathways):
        m = a[loops.OFFSETS + p + 1] - a[loops.OFFSETS + p]
        most, odd = max(most, m), odd or m % 32 > 0
    wide, block = whole(d), min(TOKENS, whole(high - low))
    scratch = whole(most) * wide + 32 if odd else 32
    copy_in, copy_gate, copy_out = (
        np.empty(scratch, np.uint16),
        np.empty(scratch, np.uint16),
        np.empty(scratch, np.uint16),
    )
    packed, hidden = np.empty(block * wide + 32, np.uint16), np.empty(block * whole(most) + 32, np.uint16)
    right = np.empty(whole(most) * wide + 32, np.uint16)
    u, v, sums = (
        np.empty(32 * 32 + 16, np.float32),
        np.empty(32 * 32 + 16, np.float32),
        np.empty(32 * 32 + 16, np.float32),
    )
    zeros, padding, tokens = np.zeros(wide, np.uint16), np.empty(16 * wide, np.uint16), np.empty(block, np.int64)
    g = np.empty(block, np.float32)
    packed_at, hidden_at, right_at, u_at, v_at, sums_at = (
        aligned(packed), aligned(hidden), aligned(right), aligned(u), aligned(v), aligned(sums),
    )  # fmt: skip
    us, vs = carray(floats(u_at), (32 * 32,)), carray(floats(v_at), (32 * 32,))
    for start in range(0, high - low, TOKENS):
        for p in range(n_pathways):
            begin, m = a[loops.OFFSETS + p], a[loops.OFFSETS + p + 1] - a[loops.OFFSETS + p]
            r = loops.tokens_of(chosen[start : start + TOKENS], p, tokens)
            if r == 0 or m == 0:
                continue
            for t in range(whole(r)):
                g[t] = gates[start + tokens[t], p] if t < r else np.float32(0)
            tokens[:r] += low + start
            chunks = whole(m) // 32
            w_in = whole_rows(a[loops.W_IN], begin, m, d, copy_in)
            w_gate = whole_rows(a[loops.W_GATE], begin, m, d, copy_gate) if a[loops.W_GATE] else 0
            w_out = whole_rows(a[loops.W_OUT], begin, m, d, copy_out)
            pack_some(a[loops.X], tokens[:r], d, zeros.ctypes.data, padding.ctypes.data, packed_at)
            for c in range(chunks):
                few = min(32, m - 32 * c)
                for t in range(0, r, 32):
                    groups = 2 if r - t > 16 else 1
                    stride = 16 * groups
                    up(w_in + 64 * c * wide, packed_at + 2 * t * wide, groups, wide, u_at, stride)
                    loops.add_bias(us, b_in, begin + 32 * c, few, stride)
                    if a[loops.W_GATE]:
                        up(w_gate + 64 * c * wide, packed_at + 2 * t * wide, groups, wide, v_at, stride)
                        loops.add_bias(vs, b_gate, begin + 32 * c, few, stride)
                        activate(vs, a[loops.CODE], 32 * stride)
                        for i in range(32 * stride):
                            us[i] *= vs[i]
                    else:
                        activate(us, a[loops.CODE], 32 * stride)
                    for i in range(t, t + stride, 16):
                        out = hidden_at + (i // 16 * chunks + c) * TILE
                        pack_hidden(u_at + 4 * (i - t), 4 * stride, g.ctypes.data + 4 * i, out)
            for c in range(chunks):
                pack_rows(w_out + 64 * c * wide, wide, right_at + 2 * TILE * c, 2 * TILE * chunks)
            for column in range(0, d, 32):
                packed_rows = right_at + 64 * column * chunks
                for t in range(0, r, 32):
                    left, step = hidden_at + t // 16 * chunks * TILE, chunks * TILE
                    if r - t > 16:
                        tiles_2_2(left, 64, step, TILE, packed_rows, TILE, 2 * TILE, chunks, sums_at, 128)
                    else:
                        tiles_1_2(left, 64, step, TILE, packed_rows, TILE, 2 * TILE, chunks, sums_at, 128)
                    for i in range(min(32, r - t)):
                        target = a[loops.Y] + 4 * (tokens[t + i] * d + column)
                        if column + 32 <= d:
                            add_row(target, sums_at + 128 * i)
                        else:
                            y, more = carray(floats(target), (d - column,)), carray(floats(sums_at + 128 * i), (32,))
                            for j in range(d - column):
                                y[j] += more[j]
    keep(copy_in, copy_gate, copy_out, packed, hidden, right, u, v, sums, zeros, padding, g)


@numba.njit(**loops.OPTIONS)
def forward_tiles(a, thread, threads):
    """Adds to Y [n, d], of this thread's share of the tokens."""
    n, p = a[loops.N], a[loops.P]
    low, high = n * thread // threads, n * (thread + 1) // threads
    chosen, gates = carray(bytes_at(a[loops.CHOSEN]), (n, p)), carray(floats(a[loops.GATES]), (n, p))
    begin_tiles()
    add_pathways(a, low, high, chosen[low:high], gates[low:high])
    end_tiles()


def forward_tiles_member(arguments):
    a = told(arguments)
    forward_tiles(a, np.int64(call_for_int(a[loops.THREAD])), np.int64(call_for_int(a[loops.THREADS])))


MEMBERS[forward_tiles] = forward_tiles_member


def amx_forward(
    x: Tensor,
    W_in: Tensor,
    b_in: Tensor | None,
    W_gate: Tensor | None,
    b_gate: Tensor | None,
    W_out: Tensor,
    gates: Tensor,
    chosen: Tensor,
    offsets: Sequence[int],
    activation: str,
) -> Tensor:
    """The same function as `kernels.cpu.grouped_forward`, for bfloat16, accumulated in float32."""
    n, d = x.shape
    y = torch.zeros(n, d)
    # Held here, as the loop knows addresses alone.
    held = (*map(contiguous, (x, W_in, b_in, W_gate, b_gate, W_out)), as_float(gates), chosen.contiguous(), y)
    arguments = [n, d, len(offsets) - 1, CODES[activation], 2, 0, 0, *map(address, held)]
    run(forward_tiles, team_size(W_in.nbytes * n), packed(arguments, offsets))
    return y.to(x.dtype)
