"""Grouped matrix products for many tokens: each tile works on consecutive pairs of one pathway, spare tiles return.

Forward: up (gather, product, bias, activation, gate), down (pair rows), combine (each token's pairs in pathway order).
Backward: hidden (u, v and e computed together, their gradients stored), down and combine again for dx, and XᵀY for the
weights. Hidden activations are computed again, nothing is kept between the passes, and no atomics are used, so results
are reproducible bit for bit. Row offsets are int64.

Shapes: n tokens, d model, f neurons, p pathways, m neurons of a pathway (M at most), r pairs.
"""

import triton
import triton.language as tl

from kernels.gpu.pieces import activate, multiply, narrow, slope


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
    offsets,
    d,
    P,
    M,
    ACT: tl.constexpr,
    BIASED: tl.constexpr,
    GATED: tl.constexpr,
    GATE_BIASED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """hidden[r] = gate_r · act(x W_inᵀ + b_in), or gate_r · act(x W_gateᵀ + b_gate) ⊙ (x W_inᵀ + b_in)."""
    pathway = tl.load(tile_pathway + tl.program_id(0))
    if pathway < 0:
        return
    r = tl.load(tile_row + tl.program_id(0)) + tl.arange(0, ROWS)
    real = r < tl.load(starts + pathway + 1)
    t = tl.load(token + r, mask=real, other=0).to(tl.int64)
    first = tl.load(offsets + pathway)
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    present = column < tl.load(offsets + pathway + 1) - first
    f = (first + column).to(tl.int64)
    inner = tl.arange(0, INNER)
    u = tl.zeros((ROWS, COLS), tl.float32)
    v = tl.zeros((ROWS, COLS), tl.float32)
    for k in range(0, d, INNER):
        i = k + inner
        a = tl.load(x + t[:, None] * d + i[None, :], mask=real[:, None] & (i < d)[None, :], other=0.0)
        inside = present[None, :] & (i < d)[:, None]
        u = multiply(a, tl.load(W_in + f[None, :] * d + i[:, None], mask=inside, other=0.0), u, PRECISION, UPCAST)
        if GATED:
            w = tl.load(W_gate + f[None, :] * d + i[:, None], mask=inside, other=0.0)
            v = multiply(a, w, v, PRECISION, UPCAST)
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
    offsets,
    d,
    M,
    GATED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[r] = hidden[r] W_p, plus hidden_gate[r] W_gate_p when GATED (for dx of a gated MLP)."""
    pathway = tl.load(tile_pathway + tl.program_id(0))
    if pathway < 0:
        return
    r = tl.load(tile_row + tl.program_id(0)) + tl.arange(0, ROWS)
    real = r < tl.load(starts + pathway + 1)
    r = r.to(tl.int64)
    first = tl.load(offsets + pathway)
    m = tl.load(offsets + pathway + 1) - first
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inner = tl.arange(0, INNER)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for k in range(0, m, INNER):
        j = k + inner
        f = (first + j).to(tl.int64)
        rows = real[:, None] & (j < m)[None, :]
        inside = (j < m)[:, None] & (column < d)[None, :]
        h = tl.load(hidden + r[:, None] * M + j[None, :], mask=rows, other=0.0)
        w = tl.load(W + f[:, None] * d + column[None, :], mask=inside, other=0.0)
        total = multiply(h, w, total, PRECISION, UPCAST)
        if GATED:
            h = tl.load(hidden_gate + r[:, None] * M + j[None, :], mask=rows, other=0.0)
            w = tl.load(W_gate + f[:, None] * d + column[None, :], mask=inside, other=0.0)
            total = multiply(h, w, total, PRECISION, UPCAST)
    place = out + r[:, None] * d + column[None, :]
    tl.store(place, narrow(total, out.dtype.element_ty, UPCAST), mask=real[:, None] & (column < d)[None, :])


@triton.jit
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


@triton.jit
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
    offsets,
    d,
    P,
    M,
    cells,
    ACT: tl.constexpr,
    BIASED: tl.constexpr,
    GATED: tl.constexpr,
    GATE_BIASED: tl.constexpr,
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
    pathway = tl.load(tile_pathway + tl.program_id(0))
    if pathway < 0:
        return
    r = tl.load(tile_row + tl.program_id(0)) + tl.arange(0, ROWS)
    real = r < tl.load(starts + pathway + 1)
    t = tl.load(token + r, mask=real, other=0).to(tl.int64)
    first = tl.load(offsets + pathway)
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    present = column < tl.load(offsets + pathway + 1) - first
    f = (first + column).to(tl.int64)
    inner = tl.arange(0, INNER)
    u = tl.zeros((ROWS, COLS), tl.float32)
    v = tl.zeros((ROWS, COLS), tl.float32)
    e = tl.zeros((ROWS, COLS), tl.float32)
    for k in range(0, d, INNER):
        i = k + inner
        rows = real[:, None] & (i < d)[None, :]
        inside = present[None, :] & (i < d)[:, None]
        place = t[:, None] * d + i[None, :]
        weight = f[None, :] * d + i[:, None]
        a = tl.load(x + place, mask=rows, other=0.0)
        u = multiply(a, tl.load(W_in + weight, mask=inside, other=0.0), u, PRECISION, UPCAST)
        if GATED:
            v = multiply(a, tl.load(W_gate + weight, mask=inside, other=0.0), v, PRECISION, UPCAST)
        g = tl.load(grad + place, mask=rows, other=0.0)
        e = multiply(g, tl.load(W_out + weight, mask=inside, other=0.0), e, PRECISION, UPCAST)
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
    tl.store(d_gates + tl.program_id(1).to(tl.int64) * cells + t * P + pathway, d_gate, mask=real)


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
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[f] = Σ over the pathway's pairs of left[r, f] · right[token r], bias[f] = Σ left[r, f]; zero without any."""
    pathway = tl.program_id(0)
    begin, end = tl.load(starts + pathway), tl.load(starts + pathway + 1)
    first = tl.load(offsets + pathway)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    present = row < tl.load(offsets + pathway + 1) - first
    column = tl.program_id(2) * COLS + tl.arange(0, COLS)
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
        if BIASED:
            sums += tl.sum(a.to(tl.float32), 1)
    f = (first + row).to(tl.int64)
    place = out + f[:, None] * d + column[None, :]
    tl.store(place, narrow(total, out.dtype.element_ty, UPCAST), mask=present[:, None] & (column < d)[None, :])
    if BIASED and tl.program_id(2) == 0:
        tl.store(bias + f, narrow(sums, bias.dtype.element_ty, UPCAST), mask=present)
