"""The exact choice on a GPU: the largest of each token's scores, once by gates or routers and again by activations.

One program ranks a token in registers, up to GPU_UNITS scores. The last score chosen is found from its first bit on.
Nothing waits for the host, and grids depend only on sizes, so that CUDA graphs can hold a choice.

Shapes: n tokens, f neurons, p units or pathways (UU, padded to a power of two).
"""

import functools
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from slms.kernels.gate_reference import GateCall
from slms.kernels.gpu.pieces import activate, narrow
from slms.kernels.gpu.tiles import ACTS, block_sizes, score_sizes, select_sizes, upcast


@triton.jit
def ordered(c):
    """int32 keys in the order of the floats c: −0 is 0, and NaN is above all."""
    bits = c.to(tl.int32, bitcast=True)
    return tl.where(c != c, 0x7FFFFFFF, tl.where(bits < 0, -2147483648 - bits, bits))


@triton.jit
def largest(keys, needed, SIGNED: tl.constexpr):
    """Which of the int32 keys are the `needed` largest, the left one of equals; without SIGNED, keys below 0 are none.

    The last one chosen is the largest key that at least `needed` reach, found bit by bit, two at a time.
    """
    last = 0
    if SIGNED:
        last = tl.where(tl.sum((keys >= 0).to(tl.int32), 0) >= needed, 0, -2147483648)
    last += tl.where(tl.sum((keys >= last + 0x40000000).to(tl.int32), 0) >= needed, 0x40000000, 0)
    for turn in range(15):
        shift = 28 - 2 * turn
        one = (keys >= last + (1 << shift)).to(tl.int64)
        two = (keys >= last + (2 << shift)).to(tl.int64)
        three = (keys >= last + (3 << shift)).to(tl.int64)
        sums = tl.sum(one + (two << 20) + (three << 40), 0)  # three counts in one reduction
        digit = ((sums & 0xFFFFF) >= needed).to(tl.int32) + (((sums >> 20) & 0xFFFFF) >= needed).to(tl.int32)
        last += (digit + ((sums >> 40) >= needed).to(tl.int32)) << shift
    above, equal = keys > last, keys == last
    room = needed - tl.sum(above.to(tl.int32), 0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))


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
    t = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
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
    least,
    chosen,
    index,
    count,
    U,
    K,
    SHARED,
    ACT: tl.constexpr,
    SCORED: tl.constexpr,
    SIGNED: tl.constexpr,
    WHOLE: tl.constexpr,
    HELD: tl.constexpr,
    LISTED: tl.constexpr,
    UU: tl.constexpr,
):
    """chosen[t] = the shared units and the K − SHARED largest others, or if HELD those that reach `least`.

    With WHOLE, all if ‖c‖ > whole_above. values: scores c if SCORED, else gates before their activation. LISTED: write
    the units chosen and their number too.
    """
    t = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, UU)
    real = p < U
    c = tl.load(values + t * U + p, mask=real, other=0.0).to(tl.float32)
    if not SCORED:
        c = tl.abs(activate(c, ACT)) * tl.load(scale + p, mask=real, other=0.0)
    if WHOLE:  # before the search, which needs the registers
        whole = (tl.sqrt(tl.sum(c * c, 0)) > tl.load(whole_above)).to(tl.int32)
    if HELD:
        taken = (c >= tl.load(least)) | (c != c)
    else:
        taken = largest(tl.where(real & (p >= SHARED), ordered(c), -2147483648), K - SHARED, SIGNED)
    taken = taken | (p < SHARED)
    if WHOLE:
        taken = taken | (tl.zeros_like(p) < whole)
    taken = taken & real
    tl.store(chosen + t * U + p, taken.to(tl.uint8), mask=real)
    if LISTED:
        place = tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(index + t * U + place, p, mask=taken)
        tl.store(count + t, tl.sum(taken.to(tl.int32), 0))


@triton.jit
def keep(
    gate,
    up,
    out_scale,
    least,
    chosen,
    kept,
    hidden,
    F,
    K,
    K_OUT,
    ACT: tl.constexpr,
    HELD: tl.constexpr,
    UPCAST: tl.constexpr,
    UU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """kept[t] = the K_OUT chosen neurons of largest |h| · out_scale, or if HELD those that reach `least`.

    A token that chose all F neurons, though K are fewer, keeps all. hidden = h = act(gate) · up where kept, else 0; it
    goes through memory block by block, since the search needs the registers.
    """
    t = tl.program_id(0).to(tl.int64)
    for first in range(0, F, BLOCK):
        j = t * F + first + tl.arange(0, BLOCK)
        inside = j < (t + 1) * F
        a = activate(tl.load(gate + j, mask=inside, other=0.0).to(tl.float32), ACT)
        h = a * tl.load(up + j, mask=inside, other=0.0).to(tl.float32)
        tl.store(hidden + j, narrow(h, hidden.dtype.element_ty, UPCAST), mask=inside)
    tl.debug_barrier()
    i = tl.arange(0, UU)
    c = tl.load(chosen + t * F + i, mask=i < F, other=0) != 0
    whole = ((tl.sum(c.to(tl.int32), 0) == F) & (K < F)).to(tl.int32)
    worth = tl.abs(tl.load(hidden + t * F + i, mask=i < F, other=0.0).to(tl.float32))
    worth *= tl.load(out_scale + i, mask=i < F, other=0.0)
    if HELD:
        taken = c & ((worth >= tl.load(least)) | (worth != worth))
    else:
        taken = largest(tl.where(c, ordered(worth), -1), K_OUT, False)
    taken = taken | (tl.zeros_like(i) < whole)
    tl.store(kept + t * F + i, taken.to(tl.uint8), mask=i < F)
    tl.store(hidden + t * F + i, tl.zeros((UU,), hidden.dtype.element_ty), mask=(i < F) & (taken == 0))


@functools.cache
def device_offsets(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """The offsets on a device, copied once per partition, never freed, so that calls and CUDA graphs copy nothing."""
    return torch.tensor(offsets, dtype=torch.int32, device=device)


@functools.cache
def unit_of(units: tuple[int, ...], device: torch.device) -> Tensor:
    """The unit [f] of every neuron, on a device; never freed, as `device_offsets`."""
    sizes = torch.tensor([end - start for start, end in pairwise(units)])
    return torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(sizes).to(device)


def select_units(gate: Tensor, call: GateCall, units: tuple[int, ...], listed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What each token chooses [n, p] uint8 by gates [n, f]; if listed, which units, and how many of them."""
    gate, scale = gate.contiguous(), call.scale.contiguous()
    n, f = gate.shape
    p, values, act = len(units) - 1 if units else f, gate, ACTS[call.activation]
    if units:
        values = gate.new_empty(n, p, dtype=torch.float32)
        longest = max(end - start for start, end in pairwise(units))
        sizes = {"ALIGNED": all(offset % 16 == 0 for offset in units), **score_sizes(longest)}
        if n * p:
            offsets = device_offsets(units, gate.device)
            score[(n, triton.cdiv(p, sizes["UNITS"]))](gate, scale, offsets, values, f, p, longest, act, **sizes)
    chosen = gate.new_empty(n, p, dtype=torch.uint8)
    index = gate.new_empty((n, p) if listed else 0, dtype=torch.int32)
    count = gate.new_empty(n if listed else 0, dtype=torch.int32)
    if n * p:
        limits = [scale if limit is None else limit for limit in (call.whole_above, call.least)]
        flags = {"SCORED": bool(units), "SIGNED": False, "WHOLE": call.whole_above is not None}
        flags |= {"HELD": call.least is not None, "LISTED": listed}
        tensors, numbers = (values, scale, *limits, chosen, index, count), (p, call.k, call.n_shared)
        select[(n,)](*tensors, *numbers, act, **flags, **select_sizes(p))
    return chosen, index, count


def keep_neurons(up: Tensor, gate: Tensor, chosen: Tensor, call: GateCall) -> tuple[Tensor, Tensor]:
    """The second choice [n, f] uint8 among the neurons chosen [n, f] uint8; and h [n, f], 0 where not kept."""
    assert call.k_out is not None and call.out_scale is not None  # the call has been checked
    up, gate, out_scale = up.contiguous(), gate.contiguous(), call.out_scale.contiguous()
    n, f = gate.shape
    kept, hidden = torch.empty_like(chosen), torch.empty_like(gate)
    if n * f:
        least = out_scale if call.least_out is None else call.least_out
        flags = {"ACT": ACTS[call.activation], "HELD": call.least_out is not None, "UPCAST": upcast(gate.dtype)}
        tensors = (gate, up, out_scale, least, chosen, kept, hidden)
        keep[(n,)](*tensors, f, call.k, call.k_out, **flags, **select_sizes(f), **block_sizes(f))
    return kept, hidden


def top_k(scores: Tensor, k: int) -> Tensor:
    """`kernels.router.top_k` of scores [..., p] in float32, in which NaN is the largest."""
    scores = scores.contiguous()
    p = scores.shape[-1]
    n, chosen = scores.numel() // max(p, 1), torch.empty_like(scores, dtype=torch.uint8)
    if n:
        flags = {"SCORED": True, "SIGNED": True, "WHOLE": False, "HELD": False, "LISTED": False}
        with torch.cuda.device_of(scores):  # Triton launches on the current device
            select[(n,)](
                scores, scores, scores, scores, chosen, chosen, chosen, p, k, 0, "relu", **flags, **select_sizes(p)
            )
    return chosen.view(torch.bool)
