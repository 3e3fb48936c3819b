"""The backward pass of the grouped products: gradients of the hidden activations, then XᵀY for the weights.

Hidden activations are recomputed, so nothing is kept between the passes. weight_gradient is not persistent, because its
grid has no spare tiles, and the hardware, which starts a program wherever one has ended, spreads tiles of unequal
length best.

Shapes: n tokens, d model, f neurons, p pathways, m neurons of a pathway (M at most), r pairs.
"""

import triton
import triton.language as tl

from slms.kernels.gpu.grouped import turn
from slms.kernels.gpu.pieces import activate, multiply, narrow, slope, span


@triton.jit(do_not_specialize=["cells"])
def hidden_gradients(
    x,
    grad,
    W_in,
    b_in,
    W_gate,
    b_gate,
    W_out,
    gates,
    hidden,
    du,
    dv,
    d_gates,
    token,
    starts,
    tile_pathway,
    tile_row,
    n_tiles,
    offsets,
    d,
    P,
    M,
    cells,
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
    """With e = grad W_outᵀ: hidden = gate · h, du, dv, and d_gates[column tile, t, p] = ⟨h, e⟩ over the tile's columns.

    Two matrices: h = act(u), du = gate · e · act'(u). Gated: h = act(v) u, du = gate · e · act(v),
    dv = gate · e · u · act'(v).
    """
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
        left = t[:, None] * d + inner[None, :]
        right = f[None, :] * d + inner[:, None]
        u = tl.zeros((ROWS, COLS), tl.float32)
        v = tl.zeros((ROWS, COLS), tl.float32)
        e = tl.zeros((ROWS, COLS), tl.float32)
        for k in range(0, d, INNER):
            rows = real[:, None] & (inner < d - k)[None, :]
            inside = present[None, :] & (inner < d - k)[:, None]
            a = tl.load(x + k + left, mask=rows, other=0.0)
            u = multiply(a, tl.load(W_in + k + right, mask=inside, other=0.0), u, PRECISION, UPCAST)
            if GATED:
                v = multiply(a, tl.load(W_gate + k + right, mask=inside, other=0.0), v, PRECISION, UPCAST)
            g = tl.load(grad + k + left, mask=rows, other=0.0)
            e = multiply(g, tl.load(W_out + k + right, mask=inside, other=0.0), e, PRECISION, UPCAST)
        if BIASED:
            u += tl.load(b_in + f, mask=present, other=0.0).to(tl.float32)[None, :]
        gate = tl.load(gates + t * P + pathway, mask=real, other=0.0).to(tl.float32)[:, None]
        stored = r.to(tl.int64)[:, None] * M + column[None, :]
        valid = real[:, None] & present[None, :]
        if GATED:
            if GATE_BIASED:
                v += tl.load(b_gate + f, mask=present, other=0.0).to(tl.float32)[None, :]
            a = activate(v, ACT)
            h = a * u
            tl.store(du + stored, narrow(gate * e * a, du.dtype.element_ty, UPCAST), mask=valid)
            tl.store(dv + stored, narrow(gate * e * u * slope(v, ACT), dv.dtype.element_ty, UPCAST), mask=valid)
        else:
            h = activate(u, ACT)
            tl.store(du + stored, narrow(gate * e * slope(u, ACT), du.dtype.element_ty, UPCAST), mask=valid)
        tl.store(hidden + stored, narrow(gate * h, hidden.dtype.element_ty, UPCAST), mask=valid)
        d_gate = tl.sum(tl.where(present[None, :], h * e, 0.0), 1)
        tl.store(d_gates + block.to(tl.int64) * cells + t * P + pathway, d_gate, mask=real)


@triton.jit
def weight_gradient(
    left,
    right,
    out,
    bias,
    token,
    starts,
    offsets,
    d,
    M,
    BIASED: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[f] = Σ over the pathway's pairs of left[r, f] · right[token r], bias[f] = Σ left[r, f]; zero without any."""
    pathway = tl.program_id(2)
    begin, end = tl.load(starts + pathway), tl.load(starts + pathway + 1)
    first, m = span(offsets, pathway, ALIGNED)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = row < m
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inner = tl.arange(0, INNER)
    total = tl.zeros((ROWS, COLS), tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    for k in range(begin, end, INNER):
        r = k + inner
        t = tl.load(token + r, mask=r < end, other=0).to(tl.int64)
        place = left + r.to(tl.int64)[None, :] * M + row[:, None]
        a = tl.load(place, mask=present[:, None] & (r < end)[None, :], other=0.0)
        b = tl.load(
            right + t[:, None] * d + column[None, :], mask=(r < end)[:, None] & (column < d)[None, :], other=0.0
        )
        total = multiply(a, b, total, PRECISION, UPCAST)
        if BIASED and tl.program_id(1) == 0:
            sums += tl.sum(a.to(tl.float32), 1)
    f = (first + row).to(tl.int64)
    place = out + f[:, None] * d + column[None, :]
    tl.store(place, narrow(total, out.dtype.element_ty, UPCAST), mask=present[:, None] & (column < d)[None, :])
    if BIASED and tl.program_id(1) == 0:
        tl.store(bias + f, narrow(sums, bias.dtype.element_ty, UPCAST), mask=present)
