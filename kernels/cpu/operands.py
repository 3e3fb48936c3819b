"""Prepares the operands of tile registers and handles their sums, for `amx`, its backward pass and the router.

All addresses are int64. `whole` sizes are multiples of 32; missing numbers are filled with zeros.
"""

import numpy as np
from numba import carray
from numba.extending import register_jitable

from slms.kernels.cpu.amx_tiles import TILE, add_row, pack_rows, pack_tokens, products
from slms.kernels.cpu.memory import floats, halves, keep, stay_apart

tiles_2_2, tiles_2_1, tiles_1_2 = products(2, 2), products(2, 1), products(1, 2)


@register_jitable
def aligned(array):
    """The first address in an array at which a cache line begins; such arrays are made one line longer than needed."""
    return (array.ctypes.data + 63) & ~63


@register_jitable
def whole(count):
    return (count + 31) & ~31


@register_jitable
def whole_rows(address, first, count, d, copy):
    """The address of `count` rows from `first` on, as whole tiles: in place, or padded with zeros in `copy`."""
    wide = whole(d)
    if count == whole(count) and d == wide:
        return address + 2 * first * d
    start = aligned(copy)
    rows, stored = carray(halves(start), (whole(count), wide)), carray(halves(address + 2 * first * d), (count, d))
    for i in range(whole(count)):
        for j in range(wide):
            rows[i, j] = stored[i, j] if i < count and j < d else np.uint16(0)
    return start


@register_jitable
def spare_rows(count, d):
    return np.empty(whole(count) * whole(d) + 32 if count % 32 or d % 32 else 32, np.uint16)


@register_jitable
def pack_some(x, tokens, d, zeros, padding, out):
    """Right operands of these tokens' inputs, sixteen at a time."""
    stay_apart()
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
    stay_apart()
    if groups == 2:
        tiles_2_2(rows, 2 * wide, 32 * wide, 64, packed, 32 * wide, TILE, wide // 32, u, 4 * stride)
    else:
        tiles_2_1(rows, 2 * wide, 32 * wide, 64, packed, 32 * wide, TILE, wide // 32, u, 4 * stride)


@register_jitable
def pack_pairs(x, tokens, d, gathered, out):
    """Right operands of these tokens' rows, paired along the tokens: 32 tokens by 32 tokens for each 32 columns."""
    wide, steps = whole(d), whole(tokens.shape[0]) // 32
    rows = carray(halves(gathered), (32, wide))
    for step in range(steps):
        for i in range(32):
            t = 32 * step + i
            row = carray(halves(x + 2 * d * (tokens[t] if t < tokens.shape[0] else 0)), (d,))
            for j in range(wide):
                rows[i, j] = row[j] if t < tokens.shape[0] and j < d else np.uint16(0)
        pack_rows(gathered, wide, out + 2 * TILE * step, 2 * TILE * steps)


@register_jitable
def add_products(left, right, chunks, tokens, d, y, sums):
    """y [n, d] += the products of left operands [tokens, 32 neurons] and packed rows, at these tokens."""
    stay_apart()
    for column in range(0, d, 32):
        rows = right + 64 * column * chunks
        for t in range(0, tokens.shape[0], 32):
            there, step = left + t // 16 * chunks * TILE, chunks * TILE
            if tokens.shape[0] - t > 16:
                tiles_2_2(there, 64, step, TILE, rows, TILE, 2 * TILE, chunks, sums, 128)
            else:
                tiles_1_2(there, 64, step, TILE, rows, TILE, 2 * TILE, chunks, sums, 128)
            for i in range(min(32, tokens.shape[0] - t)):
                if column + 32 <= d:
                    add_row(y.ctypes.data + 4 * (tokens[t + i] * d + column), sums + 128 * i)
                else:
                    more = carray(floats(sums + 128 * i), (32,))
                    for j in range(column, d):
                        y[tokens[t + i], j] += more[j - column]
