"""Gate-selected neurons in Triton: the exact choice, and for few tokens the rows of what was chosen.

Two kernels choose (one, for single neurons), two more run up and down. Nothing waits for the host and grids depend only
on sizes, so that CUDA graphs can hold a step. No atomics are used: results are reproducible bit for bit.

Shapes: n tokens (N, padded to what a tensor core takes), d model, f neurons, p units (UU, padded to a power of two), s
slices of the rows.
"""

import functools
from itertools import pairwise

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from slms.kernels.backends import GPU_TOKENS
from slms.kernels.gate_reference import GateCall
from slms.kernels.gpu.decode import STAGES, product
from slms.kernels.gpu.pieces import activate, multiply, narrow
from slms.kernels.gpu.problem import device_offsets
from slms.kernels.gpu.tiles import ACTS, ADD, arithmetic, gate_tile, score_sizes, select_sizes, upcast


@triton.jit
def score(
    gate,
    scale,
    offsets,
    scores,
    f,
    U,
    LONGEST,
    ACT: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNITS: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    """scores[t, p] = √ Σ over the unit's neurons i of (|act(gate[t, i])| · scale[i])²"""
    t = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    first = tl.load(offsets + p, mask=p < U, other=0)
    end = tl.load(offsets + p + 1, mask=p < U, other=0)
    if ALIGNED:  # see `kernels.gpu.pieces.span`
        first, end = tl.multiple_of(first, 16), tl.multiple_of(end, 16)
    sums = tl.zeros((UNITS, MEMBERS), tl.float32)
    for k in range(0, LONGEST, MEMBERS):
        i = first[:, None] + k + tl.arange(0, MEMBERS)[None, :]
        mine = i < end[:, None]
        c = activate(tl.load(gate + t * f + i, mask=mine, other=0.0).to(tl.float32), ACT)
        c *= tl.load(scale + i, mask=mine, other=0.0)
        sums += c * c
    tl.store(scores + t * U + p, tl.sqrt(tl.sum(sums, 1)), mask=p < U)


@triton.jit
def select(
    values,
    scale,
    whole_above,
    chosen,
    index,
    count,
    U,
    K,
    SHARED,
    ACT: tl.constexpr,
    SCORED: tl.constexpr,
    WHOLE: tl.constexpr,
    LISTED: tl.constexpr,
    UU: tl.constexpr,
):
    """chosen[t] = the shared units and the K − SHARED largest others, the left one of equals; all if ‖c‖ > whole_above.

    values: scores if SCORED, else gates before their activation. LISTED: write the units chosen and their number too.
    The last score chosen is the largest of which K − SHARED are at least as large. It is found from its first bit on,
    two bits at a time: floats of at least 0 have the order of their bits. NaN is made the largest of all.
    """
    t = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, UU)
    real = p < U
    c = tl.load(values + t * U + p, mask=real, other=0.0).to(tl.float32)
    if not SCORED:
        c = tl.abs(activate(c, ACT)) * tl.load(scale + p, mask=real, other=0.0)
    bits = tl.where(c != c, 0x7FFFFFFF, c.to(tl.int32, bitcast=True))
    bits = tl.where(real & (p >= SHARED), bits, -1)
    needed = K - SHARED
    last = tl.where(tl.sum((bits >= 0x40000000).to(tl.int32), 0) >= needed, 0x40000000, 0)
    for turn in range(15):
        shift = 28 - 2 * turn
        one = (bits >= last + (1 << shift)).to(tl.int64)
        two = (bits >= last + (2 << shift)).to(tl.int64)
        three = (bits >= last + (3 << shift)).to(tl.int64)
        sums = tl.sum(one + (two << 20) + (three << 40), 0)  # three counts in one reduction
        digit = ((sums & 0xFFFFF) >= needed).to(tl.int32) + (((sums >> 20) & 0xFFFFF) >= needed).to(tl.int32)
        last += (digit + ((sums >> 40) >= needed).to(tl.int32)) << shift
    above, equal = bits > last, bits == last
    room = needed - tl.sum(above.to(tl.int32), 0)
    taken = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room)) | (p < SHARED)
    if WHOLE:
        taken = taken | (tl.zeros_like(p) < (tl.sqrt(tl.sum(c * c, 0)) > tl.load(whole_above)).to(tl.int32))
    taken = taken & real
    tl.store(chosen + t * U + p, taken.to(tl.uint8), mask=real)
    if LISTED:
        place = tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(index + t * U + place, p, mask=taken)
        tl.store(count + t, tl.sum(taken.to(tl.int32), 0))


@triton.jit(do_not_specialize=["n"])
def chosen_rows(
    x,
    gate,
    W_in,
    b_in,
    W_out,
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
    BIASED: tl.constexpr,
    SINGLE: tl.constexpr,
    LISTED: tl.constexpr,
    ONE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
):
    """partial[s, t] = Σ over the slice's neurons i that t chose of act(gate[t, i]) · u[t, i] · W_out[i].

    A slice is ROWS neurons of the one token's list, or ROWS neighbours, read if any token chose them. used[s] tells
    whether there were any; if not, nothing else is written.
    """
    t, inner = tl.arange(0, N), tl.arange(0, INNER)
    real = t < n
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if LISTED:
        inside = row < tl.load(count)
        i = tl.load(index + row, mask=inside, other=0).to(tl.int64)
        kept = real[:, None] & inside[None, :]
    else:
        i = row.to(tl.int64)
        owner = row
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
    v = tl.load(gate + t.to(tl.int64)[:, None] * f + i[None, :], mask=kept, other=0.0).to(tl.float32)
    h = tl.where(kept, activate(v, ACT) * u, 0.0)
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


@functools.cache
def unit_of(units: tuple[int, ...], device: torch.device) -> Tensor:
    """The unit [f] of every neuron, on a device; never freed, as `kernels.gpu.problem.device_offsets`."""
    sizes = torch.tensor([end - start for start, end in pairwise(units)])
    return torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(sizes).to(device)


def _select(gate: Tensor, call: GateCall, units: tuple[int, ...], listed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What each token chooses [n, p] uint8; if listed, which units, and how many of them."""
    gate, scale = gate.contiguous(), call.scale.contiguous()
    n, f = gate.shape
    p, values, act = len(units) - 1 if units else f, gate, ACTS[call.activation]
    if units:
        values = gate.new_empty(n, p, dtype=torch.float32)
        longest = max(end - start for start, end in pairwise(units))
        sizes = {"ALIGNED": all(offset % 16 == 0 for offset in units), **score_sizes(longest)}
        if n * p:
            offsets = device_offsets(units, gate.device)
            score[(triton.cdiv(p, sizes["UNITS"]), n)](gate, scale, offsets, values, f, p, longest, act, **sizes)
    chosen = gate.new_empty(n, p, dtype=torch.uint8)
    index = gate.new_empty((n, p) if listed else 0, dtype=torch.int32)
    count = gate.new_empty(n if listed else 0, dtype=torch.int32)
    if n * p:
        whole_above = scale if call.whole_above is None else call.whole_above
        flags = {"SCORED": bool(units), "WHOLE": call.whole_above is not None, "LISTED": listed, **select_sizes(p)}
        select[(n,)](values, scale, whole_above, chosen, index, count, p, call.k, call.n_shared, act, **flags)
    return chosen, index, count


def gate_choice(gate: Tensor, call: GateCall, units: tuple[int, ...]) -> Tensor:
    """Choose [n, p] bool by the gates [n, f] before their activation; `units` are empty for single neurons."""
    with torch.cuda.device_of(gate):  # Triton launches on the current device
        return _select(gate, call, units, False)[0].view(torch.bool)


def gate_rows(call: GateCall, units: tuple[int, ...]) -> Tensor:
    """The same function as `kernels.gate_mlp`, without gradients, for up to GPU_TOKENS tokens.

    It reads the whole gate matrix, and of W_in and W_out the rows that any token chose.
    """
    x, W_in, W_out = (tensor.contiguous() for tensor in (call.x, call.W_in, call.W_out))
    (n, d), f = x.shape, len(W_in)
    assert n <= GPU_TOKENS, (n, GPU_TOKENS)
    y = torch.empty_like(x)
    if n * d * f == 0:
        return y.zero_()
    with torch.cuda.device_of(x):
        gate = F.linear(x, call.W_gate, call.b_gate)
        listed = n == 1 and not units
        chosen, index, count = _select(gate, call, units, listed)
        rows = call.k if listed and call.whole_above is None else f
        tile = gate_tile(x.dtype, n, max(1, call.k * f // chosen.shape[1]))
        s = triton.cdiv(rows, tile.rows)
        partial = torch.empty(s, n, d, dtype=torch.float32, device=x.device)
        used = torch.empty(s, dtype=torch.uint8, device=x.device)
        owners = unit_of(units, x.device) if units else index
        b_in = x if call.b_in is None else call.b_in.contiguous()
        tensors = (x, gate, W_in, b_in, W_out, chosen, owners, index, count, partial, used)
        flags = {"BIASED": call.b_in is not None, "SINGLE": not units, "LISTED": listed, **arithmetic(x.dtype)}
        act, p = ACTS[call.activation], chosen.shape[1]
        if s:
            chosen_rows[(s,)](*tensors, n, d, f, p, act, **flags, **tile.launch(n))
        add_used[(n, triton.cdiv(d, ADD["COLS"]))](partial, used, y, n, d, s, **ADD, UPCAST=upcast(y.dtype))
    return y
