"""The choice of the best units in compiled loops; `kernels.gate_reference` and `kernels.choose` do it in PyTorch.

The k-th largest of a row is found bit by bit: at most 32 passes that only compare and count, 3 µs for 1,536 scores
where `torch.topk` takes 40.

Shapes: n tokens, f neurons, p units.
"""

import numpy as np
from numba import carray
from numba.extending import register_jitable

from slms.kernels.cpu import loops
from slms.kernels.cpu.memory import float_as_bits, floats, stay_apart

POSITIVE, LOWEST = np.uint32(0x7FFFFFFF), np.int32(-(2**31))

# Besides those of `loops`. GATES: [n, f] float32, written; INDEX: [n, f + 1] int64, written: each token's neurons, and
# last their number. For single neurons, P is 1, and SINGLE is set. ROW, GATE_ROW, OUT_ROW: bytes from a row of W_IN,
# W_GATE, W_OUT to the next, more than a row's where two of these lie interleaved. K_OUT: −1, or of a token's neurons so
# many, those of largest |h| · OUT_SCALE [f], go through W_OUT; H: [n, f] float32, written: the activations of INDEX.
# LEAST, LEAST_OUT: 0, or where the numbers lie that scores must reach, instead of being the K or K_OUT largest.
# CODES_8, STEP: the copy of W_GATE in eight bits, or 0.
LEAST, LEAST_OUT = 16, 17
CODES_8, STEP, GATE_ROW, OUT_ROW = 18, 19, 20, 21
SCALE, SHARED, WHOLE, SINGLE, INDEX, ROW, K_OUT, OUT_SCALE, H = loops.ROUTER_IN, 24, 25, 26, 27, 29, 30, 31, 32


@register_jitable
def score_bits(gate, scale, offsets, bits):
    """Write the scores of one token's p units as int32 bits, whose order is that of the scores, NaN the largest.

    gate [f], activated; scale [f]; offsets [p + 1] or, for single neurons, empty.
    """
    if offsets.shape[0] == 0:
        for i in range(gate.shape[0]):
            bits[i] = np.int32(float_as_bits(gate[i] * scale[i]) & POSITIVE)
        return
    for p in range(offsets.shape[0] - 1):
        total = np.float32(0)
        for i in range(offsets[p], offsets[p + 1]):
            c = gate[i] * scale[i]
            total += c * c
        bits[p] = np.int32(float_as_bits(np.sqrt(total)) & POSITIVE)


@register_jitable
def exceeds(gate, scale, above):
    """Whether the 2-norm of one token's scores exceeds the number at the address `above`; never if that is 0."""
    if above == 0:
        return False
    total = np.float32(0)
    for i in range(gate.shape[0]):
        c = gate[i] * scale[i]
        total += c * c
    return np.sqrt(total) > carray(floats(above), (1,))[0]


@register_jitable
def ordered_bits(value):
    """An int32 whose order is that of float32 numbers: of two equal ones the same, of NaN the largest."""
    bits = np.int32(float_as_bits(value))
    bits = bits ^ np.int32(POSITIVE) if bits < 0 else bits
    bits = np.int32(0) if value == 0 else bits  # −0 too
    return np.int32(POSITIVE) if value != value else bits


@register_jitable
def kth_largest(bits, k):
    """The k-th largest of the bits, 1 ≤ k ≤ their number, or a lower value that k reach; and how many reach it."""
    stay_apart()
    found, reached = LOWEST, np.int32(bits.shape[0])
    for b in range(32):
        trial = np.int32(0) if b == 0 else np.int32(found | (np.int32(1) << np.int32(31 - b)))
        count = np.int32(0)
        for i in range(bits.shape[0]):
            count = np.int32(count + np.int32(bits[i] >= trial))  # a plain sum would be int64
        if count >= k:
            found, reached = trial, count
            if count == k:
                break
    return found, reached


@register_jitable
def choose_at_least(bits, address, chosen):
    """Write chosen [p] uint8: what reaches the number at an address."""
    least = np.int32(float_as_bits(carray(floats(address), (1,))[0]))
    for i in range(bits.shape[0]):
        chosen[i] = np.uint8(bits[i] >= least)


@register_jitable
def choose_units(bits, k, n_shared, whole, chosen):
    """Write chosen [p] uint8: the shared units and the k − n_shared of largest bits, the left of equals; all if whole.

    It returns how many.
    """
    p = bits.shape[0]
    for i in range(p):
        chosen[i] = 1 if whole or i < n_shared else 0
    if whole or k == p:
        for i in range(p):
            chosen[i] = 1
        return p
    if k == n_shared:
        return k
    others = bits[n_shared:]
    least, reached = kth_largest(others, k - n_shared)
    if reached == k - n_shared:  # no equals to tell apart: vector code
        for i in range(others.shape[0]):
            chosen[n_shared + i] = np.uint8(others[i] >= least)
        return k
    room = np.int32(k - n_shared)
    for i in range(others.shape[0]):
        room -= np.int32(others[i] > least)
    for i in range(others.shape[0]):
        equal = others[i] == least
        chosen[n_shared + i] = np.uint8((others[i] > least) | (equal & (room > 0)))
        room -= np.int32(equal)
    return k
