"""Rows of single neurons for few tokens: those of the one token's list, or those that any of a few tokens chose.

Two kernels run the products with W_in, W_gate and W_out; grids depend only on sizes, so that CUDA graphs can hold them.
No atomics are used: results are reproducible bit for bit.

Shapes: n tokens (N, padded to what a tensor core takes), d model, f neurons, p units or pathways, s slices of the rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from slms.kernels.gpu.decode import STAGES, product
from slms.kernels.gpu.pieces import activate, multiply, narrow
from slms.kernels.gpu.tiles import ADD, DecodeTile, upcast


@triton.jit(do_not_specialize=["n"])
def chosen_rows(
    x,
    gate,
    W_in,
    b_in,
    W_gate,
    b_gate,
    W_out,
    weights,
    chosen,
    unit,
    index,
    count,
    partial,
    used,
    n,
    d,
    f,
    U,
    ACT: tl.constexpr,
    GATE: tl.constexpr,
    BIASED: tl.constexpr,
    GATE_BIASED: tl.constexpr,
    SINGLE: tl.constexpr,
    LISTED: tl.constexpr,
    ONE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
):
    """partial[s, t] = Σ over the slice's neurons i that t chose of h[t, i] · W_out[i].

    GATE "given": h = act(gate[t, i]) · u[t, i]. Else i's unit has a factor: h = weights[t, unit] · act(v) · u with
    "rows", whose v is x · W_gate[i] + b_gate[i], or weights[t, unit] · act(u) with "none".

    A slice is ROWS neurons of the one token's list, or ROWS neighbours, read if any token chose them. used[s] tells
    whether there were any; if not, nothing else is written.
    """
    t, inner = tl.arange(0, N), tl.arange(0, INNER)
    real = t < n
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    owner = row
    if LISTED:
        inside = row < tl.load(count)
        i = tl.load(index + row, mask=inside, other=0).to(tl.int64)
        kept = real[:, None] & inside[None, :]
    else:
        i = row.to(tl.int64)
        if not SINGLE:
            owner = tl.load(unit + row, mask=row < f, other=0)
        kept = tl.load(chosen + t[:, None] * U + owner[None, :], mask=real[:, None] & (row < f)[None, :], other=0) != 0
    present = tl.max(kept.to(tl.int32), 0) != 0
    some = tl.max(present.to(tl.int32), 0)
    tl.store(used + tl.program_id(0), some.to(tl.uint8))
    if some == 0:
        return
    u = product(x, W_in, t, i, real, present, n, d, ONE, PRECISION, UPCAST, N, ROWS, INNER)
    if BIASED:
        u += tl.load(b_in + i, mask=present, other=0.0).to(tl.float32)[None, :]
    if GATE == "given":
        v = tl.load(gate + t.to(tl.int64)[:, None] * f + i[None, :], mask=kept, other=0.0).to(tl.float32)
        h = activate(v, ACT) * u
    else:
        if GATE == "rows":
            v = product(x, W_gate, t, i, real, present, n, d, ONE, PRECISION, UPCAST, N, ROWS, INNER)
            if GATE_BIASED:
                v += tl.load(b_gate + i, mask=present, other=0.0).to(tl.float32)[None, :]
            h = activate(v, ACT) * u
        else:
            h = activate(u, ACT)
        h *= tl.load(weights + t[:, None] * U + owner[None, :], mask=kept, other=0.0).to(tl.float32)
    h = tl.where(kept, h, 0.0)
    block = partial + tl.program_id(0).to(tl.int64) * n * d
    for k in tl.range(0, d, INNER, num_stages=STAGES):
        c = k + inner
        w = tl.load(W_out + i[:, None] * d + c[None, :], mask=present[:, None] & (c < d)[None, :], other=0.0)
        if ONE:
            tl.store(block + c, tl.sum(tl.sum(h, 0)[:, None] * w.to(tl.float32), 0), mask=c < d)
        else:
            out = multiply(narrow(h, w.dtype, UPCAST), w, tl.zeros((N, INNER), tl.float32), PRECISION, UPCAST)
            tl.store(block + t[:, None] * d + c[None, :], out, mask=real[:, None] & (c < d)[None, :])


@triton.jit(do_not_specialize=["n"])
def add_used(partial, used, y, n, d, S, SLICES: tl.constexpr, COLS: tl.constexpr, UPCAST: tl.constexpr):
    """y[t] = Σ_s partial[s, t] over the slices that were used, in a fixed order."""
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    sums = tl.zeros((SLICES, COLS), tl.float32)
    for first in range(0, S, SLICES):
        s = first + tl.arange(0, SLICES)
        mask = (tl.load(used + s, mask=s < S, other=0) != 0)[:, None] & (column < d)[None, :]
        place = (s.to(tl.int64) * n + t) * d
        sums += tl.load(partial + place[:, None] + column[None, :], mask=mask, other=0.0)
    tl.store(y + t * d + column, narrow(tl.sum(sums, 0), y.dtype.element_ty, UPCAST), mask=column < d)


def run_rows(tensors: dict[str, Tensor], rows: int, tile: DecodeTile, **constants: Any) -> Tensor:
    """y [n, d] for at most GPU_TOKENS tokens, by `rows` candidate rows, from what `chosen_rows` takes.

    A tensor that the constants make unnecessary may be left out.
    """
    x = tensors["x"]
    (n, d), f, p = x.shape, len(tensors["W_in"]), tensors["chosen"].shape[1]
    s = triton.cdiv(rows, tile.rows)
    y, partial = torch.empty_like(x), torch.empty(s, n, d, dtype=torch.float32, device=x.device)
    used = torch.empty(s, dtype=torch.uint8, device=x.device)
    names = ("gate", "b_in", "W_gate", "b_gate", "weights", "unit", "index", "count")
    given = dict.fromkeys(names, x) | tensors
    if s:
        chosen_rows[(s,)](**given, partial=partial, used=used, n=n, d=d, f=f, U=p, **constants, **tile.launch(n))
    add_used[(n, triton.cdiv(d, ADD["COLS"]))](partial, used, y, n, d, s, **ADD, UPCAST=upcast(y.dtype))
    return y
