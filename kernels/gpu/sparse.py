"""Row-sparse products on a GPU for a few tokens (`kernels.neurons` in Triton), which read only rows that a token keeps.

One token gathers its rows. Several tokens share the rows that any of them keeps, which are read once and multiplied on
the tensor cores; if they share a set of neurons, these are the rows of each. Grids depend only on sizes, rows that
nobody keeps are masked, and every element is written, so that CUDA graphs can hold these calls.

Shapes: n tokens (N, padded to what a tensor core takes), r rows, c columns of W, s slices of its rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slms.kernels.backends import GPU_TOKENS
from slms.kernels.gpu.decode import STAGES, product
from slms.kernels.gpu.pieces import multiply, narrow
from slms.kernels.gpu.tiles import DECODE_TILES, SUMS_TILES, arithmetic, family

SLICES = 32


@triton.jit(do_not_specialize=["n"])
def dot_rows(
    x,
    W,
    bias,
    keep,
    out,
    n,
    r,
    c,
    BIASED: tl.constexpr,
    ONE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[t, i] = x[t] · W[i] + bias[i] where t keeps row i, else 0."""
    t = tl.arange(0, N)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cell = t.to(tl.int64)[:, None] * r + row[None, :]
    inside = (t < n)[:, None] & (row < r)[None, :]
    kept = tl.load(keep + cell, mask=inside, other=0) != 0
    present = tl.max(kept.to(tl.int32), 0) != 0
    u = tl.zeros((N, ROWS), tl.float32)
    if tl.max(present.to(tl.int32), 0) != 0:
        u += product(x, W, t, row.to(tl.int64), t < n, present, n, c, ONE, PRECISION, UPCAST, N, ROWS, INNER)
        if BIASED:
            u += tl.load(bias + row, mask=present, other=0.0).to(tl.float32)[None, :]
    tl.store(out + cell, narrow(tl.where(kept, u, 0.0), out.dtype.element_ty, UPCAST), mask=inside)


@triton.jit(do_not_specialize=["n"])
def sum_rows(
    v,
    W,
    keep,
    partial,
    n,
    r,
    c,
    LENGTH,
    ONE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """partial[s, t] = Σ of v[t, i] W[i] over the rows i of slice s, LENGTH of them, that t keeps."""
    t, row, col = tl.arange(0, N), tl.arange(0, ROWS), tl.arange(0, COLS)
    column = tl.program_id(1) * COLS + col
    begin = tl.program_id(0) * LENGTH
    end = tl.minimum(begin + LENGTH, r)
    if ONE:
        sums = tl.zeros((ROWS, COLS), tl.float32)
        for k in tl.range(begin, end, ROWS, num_stages=STAGES):
            i = k + row
            kept = tl.load(keep + i, mask=i < end, other=0) != 0
            a = tl.where(kept, tl.load(v + i, mask=i < end, other=0.0).to(tl.float32), 0.0)
            place = W + i.to(tl.int64)[:, None] * c + column[None, :]
            w = tl.load(place, mask=kept[:, None] & (column < c)[None, :], other=0.0)
            sums += a[:, None] * w.to(tl.float32)
        total = tl.sum(sums, 0)[None, :]
    else:
        total = tl.zeros((N, COLS), tl.float32)
        for k in tl.range(begin, end, ROWS, num_stages=STAGES):
            i = k + row
            cell = t.to(tl.int64)[:, None] * r + i[None, :]
            inside = (t < n)[:, None] & (i < end)[None, :]
            kept = tl.load(keep + cell, mask=inside, other=0) != 0
            a = tl.load(v + cell, mask=inside, other=0.0)
            a = tl.where(kept, a, tl.zeros_like(a))
            present = tl.max(kept.to(tl.int32), 0) != 0
            place = W + i.to(tl.int64)[:, None] * c + column[None, :]
            w = tl.load(place, mask=present[:, None] & (column < c)[None, :], other=0.0)
            total = multiply(a, w, total, PRECISION, UPCAST)
    place = partial + (tl.program_id(0) * n + t).to(tl.int64)[:, None] * c + column[None, :]
    tl.store(place, total, mask=(t < n)[:, None] & (column < c)[None, :])


def dots(x: Tensor, W: Tensor, keep: Tensor, bias: Tensor | None = None) -> Tensor:
    """`kernels.neurons.dots` for x [n, c], W [r, c], keep [n, r], bias [r]; at most GPU_TOKENS tokens."""
    (n, c), r = x.shape, W.shape[0]
    assert n <= GPU_TOKENS, (n, GPU_TOKENS)
    x, W = x.contiguous(), W.contiguous()
    out = W.new_empty(n, r)
    if out.numel() == 0:
        return out
    tile = DECODE_TILES[family(W.dtype), "one" if n == 1 else "few"]
    tensors = (x, W, W if bias is None else bias.contiguous(), keep.contiguous().view(torch.uint8), out)
    constants = {"BIASED": bias is not None, **tile.launch(n), **arithmetic(W.dtype)}
    dot_rows[(triton.cdiv(r, tile.rows),)](*tensors, n, r, c, **constants)
    return out


def sums(v: Tensor, W: Tensor, keep: Tensor) -> Tensor:
    """`kernels.neurons.sums` for v and keep [n, r], W [r, c]; at most GPU_TOKENS tokens. The order of sums is fixed."""
    n, (r, c) = len(v), W.shape
    assert n <= GPU_TOKENS, (n, GPU_TOKENS)
    v, W = v.contiguous(), W.contiguous()
    if n == 0 or c == 0 or r == 0:
        return W.new_zeros(n, c)
    tile = SUMS_TILES[family(W.dtype), "one" if n == 1 else "few"]
    length = triton.cdiv(r, SLICES * tile.rows) * tile.rows
    partial = torch.empty(triton.cdiv(r, length), n, c, dtype=torch.float32, device=W.device)
    tensors, constants = (v, W, keep.contiguous().view(torch.uint8), partial), arithmetic(W.dtype)
    grid = (len(partial), triton.cdiv(c, tile.inner))
    sum_rows[grid](*tensors, n, r, c, length, **tile.launch(n, "COLS"), **constants)
    return partial.sum(0).to(W.dtype)
