"""Grouped matrix products for many tokens: each tile works on consecutive pairs of one pathway.

up (gather, product, bias, activation, gate), down (pair rows; in the backward pass dx), combine (each token's pairs in
pathway order). No atomics are used, so results are reproducible bit for bit. Row offsets are int64.

up, down and hidden_gradients are persistent: a few programs per multiprocessor take turns at tiles, as many as the
device counted, whatever the grid.

Shapes: n tokens, d model, f neurons, p pathways, m neurons of a pathway (M at most), r pairs.
"""

import triton
import triton.language as tl

from slms.kernels.gpu.pieces import activate, multiply, narrow, span

GROUP = tl.constexpr(8)


@triton.jit
def turn(tile, count, columns):
    """The row and column of a tile: GROUP rows of tiles at a time, column by column, so that shared data is in L2."""
    group = GROUP * columns
    first = tile // group * GROUP
    rows = tl.minimum(count - first, GROUP)
    return first + tile % group % rows, tile % group // rows


@triton.jit
def up(
    x,
    W_in,
    b_in,
    W_gate,
    b_gate,
    gates,
    hidden,
    token,
    starts,
    tile_pathway,
    tile_row,
    n_tiles,
    offsets,
    d,
    P,
    M,
    ACT: tl.constexpr,
    BIASED: tl.constexpr,
    GATED: tl.constexpr,
    GATE_BIASED: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """hidden[r] = gate_r · act(x W_inᵀ + b_in), or gate_r · act(x W_gateᵀ + b_gate) ⊙ (x W_inᵀ + b_in)."""
    row, inner, col = tl.arange(0, ROWS), tl.arange(0, INNER), tl.arange(0, COLS)
    count, columns = tl.load(n_tiles), tl.cdiv(M, COLS)
    for tile in range(tl.program_id(0), count * columns, tl.num_programs(0)):
        index, block = turn(tile, count, columns)
        pathway = tl.load(tile_pathway + index)
        r = tl.load(tile_row + index) + row
        real = r < tl.load(starts + pathway + 1)
        t = tl.load(token + r, mask=real, other=0).to(tl.int64)
        first, m = span(offsets, pathway, ALIGNED)
        column = block * COLS + col
        present = column < m
        f = (first + column).to(tl.int64)
        left = x + t[:, None] * d + inner[None, :]
        right = f[None, :] * d + inner[:, None]
        u = tl.zeros((ROWS, COLS), tl.float32)
        v = tl.zeros((ROWS, COLS), tl.float32)
        for k in range(0, d, INNER):
            rows = real[:, None] & (inner < d - k)[None, :]
            inside = present[None, :] & (inner < d - k)[:, None]
            a = tl.load(left + k, mask=rows, other=0.0)
            u = multiply(a, tl.load(W_in + k + right, mask=inside, other=0.0), u, PRECISION, UPCAST)
            if GATED:
                v = multiply(a, tl.load(W_gate + k + right, mask=inside, other=0.0), v, PRECISION, UPCAST)
        if BIASED:
            u += tl.load(b_in + f, mask=present, other=0.0).to(tl.float32)[None, :]
        if GATED:
            if GATE_BIASED:
                v += tl.load(b_gate + f, mask=present, other=0.0).to(tl.float32)[None, :]
            h = activate(v, ACT) * u
        else:
            h = activate(u, ACT)
        h *= tl.load(gates + t * P + pathway, mask=real, other=0.0).to(tl.float32)[:, None]
        place = hidden + r.to(tl.int64)[:, None] * M + column[None, :]
        tl.store(place, narrow(h, hidden.dtype.element_ty, UPCAST), mask=real[:, None] & present[None, :])


@triton.jit
def down(
    hidden,
    W,
    hidden_gate,
    W_gate,
    out,
    starts,
    tile_pathway,
    tile_row,
    n_tiles,
    offsets,
    d,
    M,
    GATED: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[r] = hidden[r] W_p, plus hidden_gate[r] W_gate_p when GATED (for dx of a gated MLP)."""
    row, inner, col = tl.arange(0, ROWS), tl.arange(0, INNER), tl.arange(0, COLS)
    count, columns = tl.load(n_tiles), tl.cdiv(d, COLS)
    for tile in range(tl.program_id(0), count * columns, tl.num_programs(0)):
        index, block = turn(tile, count, columns)
        pathway = tl.load(tile_pathway + index)
        r = tl.load(tile_row + index) + row
        real = r < tl.load(starts + pathway + 1)
        first, m = span(offsets, pathway, ALIGNED)
        column = block * COLS + col
        left = r.to(tl.int64)[:, None] * M + inner[None, :]
        right = inner[:, None] * d + column[None, :]
        total = tl.zeros((ROWS, COLS), tl.float32)
        for k in range(0, m, INNER):
            rows = real[:, None] & (inner < m - k)[None, :]
            inside = (inner < m - k)[:, None] & (column < d)[None, :]
            below = (first + k).to(tl.int64) * d
            h = tl.load(hidden + k + left, mask=rows, other=0.0)
            w = tl.load(W + below + right, mask=inside, other=0.0)
            total = multiply(h, w, total, PRECISION, UPCAST)
            if GATED:
                h = tl.load(hidden_gate + k + left, mask=rows, other=0.0)
                w = tl.load(W_gate + below + right, mask=inside, other=0.0)
                total = multiply(h, w, total, PRECISION, UPCAST)
        place = out + r.to(tl.int64)[:, None] * d + column[None, :]
        tl.store(place, narrow(total, out.dtype.element_ty, UPCAST), mask=real[:, None] & (column < d)[None, :])


@triton.jit(do_not_specialize=["capacity"])
def combine(rows, pair, y, d, capacity, P: tl.constexpr, COLS: tl.constexpr, UPCAST: tl.constexpr):
    """y[t] = Σ_p rows[pair[t, p]], in pathway order; NaN for a token with a pair beyond the capacity."""
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    total = tl.zeros((COLS,), tl.float32)
    for p in range(P):
        r = tl.load(pair + t * P + p)
        if r >= capacity:
            total += float("nan")
        elif r >= 0:
            total += tl.load(rows + r.to(tl.int64) * d + column, mask=column < d, other=0.0).to(tl.float32)
    tl.store(y + t * d + column, narrow(total, y.dtype.element_ty, UPCAST), mask=column < d)
