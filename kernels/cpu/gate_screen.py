"""One token through gate-selected neurons, which reads little more of the gate matrix than the rows of what is chosen.

A copy of the matrix in eight bits tells which neurons the token can choose. Each of its rows holds whole multiples of a
step. The rounding errors, even within half a step, add up in the product with a token x to an error that is
sub-Gaussian with standard deviation step · ‖x‖ / √12, whatever x is, to which x, in 16 bits, adds little: six of them
are exceeded with a probability below 4e-8. So the copy gives an upper bound of every neuron's score. Where it reaches
the threshold, gate and score are computed from the matrix itself, which alone decides.

Shapes: d model, e that rounded up to whole cache lines, f neurons.
"""

from typing import NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import carray
from numba.core import cgutils
from numba.extending import register_jitable
from torch import Tensor

from slms.kernels.cpu import loops
from slms.kernels.cpu.gate_choice import (
    CODES_8,
    GATE_ROW,
    INDEX,
    K_OUT,
    LEAST,
    LEAST_OUT,
    OUT_SCALE,
    POSITIVE,
    ROW,
    SCALE,
    SHARED,
    STEP,
    WHOLE,
    H,
)
from slms.kernels.cpu.gate_twice import far_apart, rows_table
from slms.kernels.cpu.gathered import ROWS, dots_n
from slms.kernels.cpu.memory import (
    FLOAT,
    HALF,
    I32,
    I64,
    fetch,
    float_as_bits,
    integers,
    intrinsic,
    keep,
    numbers,
    stay_apart,
    void,
)
from slms.kernels.cpu.pointwise import activate
from slms.kernels.cpu.single import vector
from slms.kernels.cpu.vectors import EVEN, LANES, ODD, VECTOR, sums_of

LINE = 64  # bytes of a cache line, and numbers of the copy
SIGMAS = 6.06  # a hundredth for the order of sums
MARGIN = np.float32(SIGMAS / 12**0.5)
# Left of zero, |act| rises to a peak and falls again, but for relu: where, and a little more than how high. A bound by
# the ends of an interval around the peak would be too low.
AT = tuple(np.float32(at) for at in (-0.7517916, -0.7524614, 0, -1.2784645))  # by code
PEAK = tuple(np.float32(peak) for peak in (0.1699713, 0.1700412, 0, 0.2784646))
MOST, LARGEST = 127, 2**31 - 1
TOGETHER = 4  # rows of the copy; eight take a tenth longer
FAR = 2  # rows ahead that are fetched; one or four take a tenth longer
BYTE, INTEGERS, PAIRS = ir.IntType(8), ir.VectorType(I32, LANES), 2 * LANES
NOTHING = ir.Constant(INTEGERS, [0] * LANES)


class Copy(NamedTuple):
    """A matrix in eight bits."""

    codes: Tensor
    """[f, e] int8, padded by zeros; f to whole tiles"""
    step: Tensor
    """[f] fp32"""


def copy_in_bytes(weight: Tensor) -> Copy:
    """Round each row of a matrix [f, d] to whole multiples of a step; its numbers must be finite."""
    W = weight.detach().float()
    f, d = W.shape
    step = (W.abs().amax(1) / MOST).clamp_min(torch.finfo(torch.float32).tiny)
    codes = torch.zeros(-(-f // TOGETHER) * TOGETHER, -(-d // LINE) * LINE, dtype=torch.int8)
    codes[:f, :d] = (W / step[:, None]).round_()
    return Copy(codes, step)


@intrinsic
def _tile(typing_context, rows, gap, x, e, out, out_gap):
    """out_k = row_k · x of rows of e int8 that lie `gap` bytes apart, x [e] int16; `out_gap` bytes between results."""

    def codegen(context, builder, signature, arguments):
        rows, gap, x, e, out, out_gap = arguments
        starts = [builder.add(rows, builder.mul(gap, I64(k))) for k in range(TOGETHER)]
        w = [builder.inttoptr(start, BYTE.as_pointer()) for start in starts]
        token, ahead = builder.inttoptr(x, HALF.as_pointer()), builder.mul(e, I64(FAR))
        sums = [cgutils.alloca_once_value(builder, NOTHING) for _ in w]
        for total in sums:
            builder.store(NOTHING, total)
        with cgutils.for_range_slice(builder, I64(0), e, I64(LINE), inc=True) as (i, _):
            for row in w:
                fetch(builder, builder.gep(row, [builder.add(i, ahead)]))
            for part in range(0, LINE, PAIRS):
                at = builder.add(i, I64(part))
                numbers = _load(builder, token, at, HALF)
                for row, total in zip(w, sums, strict=True):
                    few = builder.sext(_load(builder, row, at, BYTE), numbers.type)
                    builder.store(_add_pairs(builder, few, numbers, builder.load(total)), total)
        results = sums_of(builder, [builder.sitofp(builder.load(total), VECTOR) for total in sums])
        for k in range(TOGETHER):
            there = builder.inttoptr(builder.add(out, builder.mul(out_gap, I64(k))), FLOAT.as_pointer())
            builder.store(builder.extract_element(results, I32(k)), there)
        return context.get_dummy_value()

    return void(6), codegen


def _load(builder, row, i, kind):
    return builder.load(builder.bitcast(builder.gep(row, [i]), ir.VectorType(kind, PAIRS).as_pointer()), align=1)


def _add_pairs(builder, a, b, total):
    """total + the products of int16 numbers, of neighbours together, which is one instruction of many processors."""
    wide = ir.VectorType(I32, PAIRS)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    even, odd = (
        builder.shuffle_vector(products, ir.Constant(wide, ir.Undefined), ir.Constant(INTEGERS, order))
        for order in (EVEN, ODD)
    )
    return builder.add(total, builder.add(even, odd))


@register_jitable
def _products(codes, step, x, e, x_step, out):
    """out [f], padded to whole tiles, = what the copy gives with a token, x [e] int16 by address."""
    stay_apart()
    f = step.shape[0]
    apart = (f + TOGETHER - 1) // TOGETHER
    for j in range(apart):
        _tile(codes + j * e, e * apart, x, e, out.ctypes.data + 4 * j, 4 * apart)
    for i in range(f):
        out[i] *= step[i] * x_step


@register_jitable
def _rounded(x, most, token):
    """Write x [d] to token [e] int16 as whole multiples of a step, at most `most`; return the step."""
    top = np.float32(0)
    for i in range(x.shape[0]):
        top = max(top, abs(x[i]))
    step = top / np.float32(most)
    factor = np.float32(most) / top if top > 0 else np.float32(0)
    for i in range(x.shape[0]):
        scaled = x[i] * factor
        token[i] = np.int16(scaled + (np.float32(0.5) if scaled > 0 else np.float32(-0.5)))
    return step


@register_jitable
def _bound(gate, step, norm, code, bound):
    """Write bound [f], of |act| over the interval around the copy's gate [f] in which the gate lies."""
    f = gate.shape[0]
    high, least = np.empty(f, np.float32), np.empty(f, np.float32)
    at, peak = AT[code], PEAK[code]
    for i in range(f):
        margin = norm * step[i]
        low, top = gate[i] - margin, gate[i] + margin
        least[i] = peak if (low < at) & (top > at) else np.float32(0)
        bound[i], high[i] = low, top
    activate(bound, code, f)
    activate(high, code, f)
    for i in range(f):
        bound[i] = max(max(abs(bound[i]), abs(high[i])), least[i])


@register_jitable
def _dots(a, some, gates, ups):
    """Write the products of X with the rows of W_GATE and W_IN that `some` names, tile by tile of both."""
    stay_apart()
    d, x, count = a[loops.D], a[loops.X], some.shape[0]
    first = rows_table(a[loops.W_GATE], a[GATE_ROW], some)
    if a[GATE_ROW] == a[ROW]:
        second = first + (a[loops.W_IN] - a[loops.W_GATE])
    else:
        second = rows_table(a[loops.W_IN], a[ROW], some)
    whole = first.shape[0] - ROWS
    g, u = np.empty(whole, np.float32), np.empty(whole, np.float32)
    for j in range(0, whole, ROWS):
        here, after, to = 8 * j, 8 * (j + ROWS), 4 * j
        dots_n(first.ctypes.data + here, first.ctypes.data + after, x, d, g.ctypes.data + to)
        dots_n(second.ctypes.data + here, second.ctypes.data + after, x, d, u.ctypes.data + to)
    for j in range(whole):
        at = far_apart(j, whole)
        if at < count:
            gates[at], ups[at] = g[j], u[j]
    keep(first, second, g, u)


@register_jitable
def _execute(a, some, told, norm, index, h):
    """Write index and h of those of the neurons `some` that are chosen, and return how many.

    told: what the copy says of their gates; the result is −1 if it is not so, or if other loops must do it.
    """
    f, code, count = a[loops.OFFSETS + a[loops.P]], a[loops.CODE], some.shape[0]
    b_gate, b_in = numbers(a[loops.B_GATE], f, 4), numbers(a[loops.B_IN], f, 4)
    scale, step, least = vector(a[SCALE], f), vector(a[STEP], f), np.int32(float_as_bits(vector(a[LEAST], 1)[0]))
    gates, ups = np.empty(count, np.float32), np.empty(count, np.float32)
    _dots(a, some, gates, ups)
    within = True
    for j in range(count):
        i = some[j]
        if b_gate.shape[0] > 0:
            gates[j] += b_gate[i]
        if b_in.shape[0] > 0:
            ups[j] += b_in[i]
        within &= abs(gates[j] - told[i]) <= norm * step[i]
    if not within:
        return -1
    activate(gates, code, count)
    runs, ran = np.empty(count, np.uint8), 0
    for j in range(count):
        runs[j] = np.int32(float_as_bits(gates[j] * scale[some[j]]) & POSITIVE) >= least
        runs[j] |= np.uint8(some[j] < a[SHARED])
        ran += int(runs[j])
        ups[j] *= gates[j]
    if a[K_OUT] >= 0:
        if ran == f and a[loops.K] < f:  # a token that chose all keeps all
            return -1
        out_scale, least = vector(a[OUT_SCALE], f), np.int32(float_as_bits(vector(a[LEAST_OUT], 1)[0]))
        for j in range(count):
            runs[j] &= np.uint8(np.int32(float_as_bits(ups[j] * out_scale[some[j]]) & POSITIVE) >= least)
    kept = 0
    for j in range(count):
        index[kept], h[kept] = some[j], ups[j]
        kept += int(runs[j])
    return kept


@register_jitable
def screened_token(a):
    """Write INDEX and H of the only token, X [d]: all but the down-projections.

    It returns False if other loops must do it: if the token may be whole, if something is not a number, or if the gate
    matrix has left its copy.
    """
    stay_apart()
    d, f, code, shared = a[loops.D], a[loops.OFFSETS + a[loops.P]], a[loops.CODE], a[SHARED]
    e = (d + LINE - 1) // LINE * LINE
    x, token, total = vector(a[loops.X], d), np.zeros(e, np.int16), np.float32(0)
    for i in range(d):
        total += x[i] * x[i]
    if not total < np.float32(np.inf):
        return False
    x_step = _rounded(
        x, min(32767, LARGEST * LANES // (MOST * e)), token
    )  # no lane's sum of e / LANES products overflows
    norm = MARGIN * np.sqrt(total + np.float32(d) * (x_step * np.float32(MOST)) ** 2)
    step, scale, bias = vector(a[STEP], f), vector(a[SCALE], f), numbers(a[loops.B_GATE], f, 4)
    gate, bound = np.empty(f + TOGETHER, np.float32), np.empty(f, np.float32)
    _products(a[CODES_8], step, token.ctypes.data, e, x_step, gate)
    gate = gate[:f]
    if bias.shape[0] > 0:
        for i in range(f):
            gate[i] += bias[i]
    _bound(gate, step, norm, code, bound)
    least, total = vector(a[LEAST], 1)[0], np.float32(0)
    some, count = np.empty(f, np.int64), 0
    for i in range(f):
        c = bound[i] * scale[i]
        total += c * c
        some[count] = i  # written over if its bound is too low; a branch would be guessed wrong half the time
        count += int((c >= least) | (i < shared))
    if a[WHOLE] != 0 and np.sqrt(total) > vector(a[WHOLE], 1)[0]:
        return False
    keep(token)
    if count == 0:
        carray(integers(a[INDEX]), (f + 1,))[f] = 0
        return True
    index, h = carray(integers(a[INDEX]), (f + 1,)), vector(a[H], f)
    index[f] = _execute(a, some[:count], gate, norm, index, h)
    return index[f] >= 0
