"""Fused routed MLP for a few tokens. Reading weights bounds its speed, so it reads each chosen row exactly once.

A program owns a slice of one pathway's neurons. It computes their activations for all tokens, multiplies them with
their rows of W_out, and writes a partial sum for each token that chose the pathway; a second kernel adds these in a
fixed order. The grid covers all pathways and is the same for every choice, so that CUDA graphs can hold it; programs of
pathways that nobody chose return at once.

Shapes: n tokens (N, padded to what a tensor core takes), d model, f neurons, p pathways, s slices of each pathway.
"""

import triton
import triton.language as tl

from slms.kernels.gpu.pieces import activate, multiply, narrow, span

# Loads in flight at a time. Without a product of matrices, Triton plans ahead only if it is told to.
STAGES = tl.constexpr(3)


@triton.jit
def product(
    x,
    W,
    t,
    f,
    real,
    present,
    n,
    d,
    ONE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
):
    """x W[f]ᵀ, [N, ROWS] float32: a sum over rows for one token, else a product on the tensor cores."""
    inner = tl.arange(0, INNER)
    if ONE:
        sums = tl.zeros((ROWS, INNER), tl.float32)
        for k in tl.range(0, d, INNER, num_stages=STAGES):
            i = k + inner
            w = tl.load(W + f[:, None] * d + i[None, :], mask=present[:, None] & (i < d)[None, :], other=0.0)
            a = tl.load(x + i, mask=i < d, other=0.0).to(tl.float32)
            sums += w.to(tl.float32) * a[None, :]
        return tl.sum(sums, 1)[None, :]
    else:
        total = tl.zeros((N, ROWS), tl.float32)
        for k in tl.range(0, d, INNER, num_stages=STAGES):
            i = k + inner
            a = tl.load(x + t[:, None] * d + i[None, :], mask=real[:, None] & (i < d)[None, :], other=0.0)
            w = tl.load(W + f[None, :] * d + i[:, None], mask=present[None, :] & (i < d)[:, None], other=0.0)
            total = multiply(a, w, total, PRECISION, UPCAST)
        return total


@triton.jit(do_not_specialize=["n"])
def slices(
    x,
    W_in,
    b_in,
    W_gate,
    b_gate,
    W_out,
    gates,
    chosen,
    partial,
    offsets,
    n,
    d,
    P,
    ACT: tl.constexpr,
    BIASED: tl.constexpr,
    GATED: tl.constexpr,
    GATE_BIASED: tl.constexpr,
    ALIGNED: tl.constexpr,
    ONE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
):
    """partial[p, s, t] = Σ over the slice's neurons f of gate · h_f W_out[f], for pathways that some token chose."""
    pathway = tl.program_id(0)
    t = tl.arange(0, N)
    real = t < n
    c = tl.load(chosen + t * P + pathway, mask=real, other=0) != 0
    if tl.max(c.to(tl.int32), 0) == 0:
        return
    first, m = span(offsets, pathway, ALIGNED)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    present = row < m
    f = (first + row).to(tl.int64)
    u = product(x, W_in, t, f, real, present, n, d, ONE, PRECISION, UPCAST, N, ROWS, INNER)
    if BIASED:
        u += tl.load(b_in + f, mask=present, other=0.0).to(tl.float32)[None, :]
    if GATED:
        v = product(x, W_gate, t, f, real, present, n, d, ONE, PRECISION, UPCAST, N, ROWS, INNER)
        if GATE_BIASED:
            v += tl.load(b_gate + f, mask=present, other=0.0).to(tl.float32)[None, :]
        h = activate(v, ACT) * u
    else:
        h = activate(u, ACT)
    gate = tl.load(gates + t * P + pathway, mask=real & c, other=0.0).to(tl.float32)
    h = tl.where(c[:, None] & present[None, :], h * gate[:, None], 0.0)
    block = partial + (pathway * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * n * d
    inner = tl.arange(0, INNER)
    for k in tl.range(0, d, INNER, num_stages=STAGES):
        i = k + inner
        w = tl.load(W_out + f[:, None] * d + i[None, :], mask=present[:, None] & (i < d)[None, :], other=0.0)
        if ONE:
            out = tl.sum(tl.sum(h, 0)[:, None] * w.to(tl.float32), 0)
            tl.store(block + i, out, mask=i < d)
        else:
            out = multiply(narrow(h, w.dtype, UPCAST), w, tl.zeros((N, INNER), tl.float32), PRECISION, UPCAST)
            tl.store(block + t[:, None] * d + i[None, :], out, mask=c[:, None] & (i < d)[None, :])


@triton.jit(do_not_specialize=["n"])
def add_slices(
    partial,
    chosen,
    b_out,
    mean_out,
    y,
    n,
    d,
    S,
    BIASED: tl.constexpr,
    MEANS: tl.constexpr,
    P: tl.constexpr,
    SLICES: tl.constexpr,
    COLS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """y[t] = b_out + Σ_p Σ_s partial[p, s, t] over the pathways that t chose, + Σ_p mean_out[p] over the others."""
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    sums = tl.zeros((SLICES, COLS), tl.float32)
    total = tl.zeros((COLS,), tl.float32)
    if BIASED:
        total += tl.load(b_out + column, mask=column < d, other=0.0).to(tl.float32)
    for p in range(P):
        if tl.load(chosen + t * P + p) != 0:
            for first in range(0, S, SLICES):
                s = first + tl.arange(0, SLICES)
                row = ((p * S + s).to(tl.int64) * n + t) * d
                mask = (s < S)[:, None] & (column < d)[None, :]
                sums += tl.load(partial + row[:, None] + column[None, :], mask=mask, other=0.0)
        elif MEANS:
            total += tl.load(mean_out + p * d + column, mask=column < d, other=0.0).to(tl.float32)
    total += tl.sum(sums, 0)
    tl.store(y + t * d + column, narrow(total, y.dtype.element_ty, UPCAST), mask=column < d)
