"""The products of a single token with consecutive rows, at the speed of memory, for `loops`.

Eight rows are read at a time, far apart rather than neighbours, because a processor fetches ahead in one direction per
page, and four neighbours of 1 KB lie in one page. Of two neighbouring bfloat16 numbers, a shift turns the lower into a
float32 and a mask the upper, which is half the work of widening them in order. So the token's numbers, and the sums,
lie in lanes: of every 32, first those at even places, then those at odd ones. The remainder of d is in order.

All arguments of a tile are int64: addresses, counts, distances in bytes. Shapes: d model.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import carray
from numba.core import cgutils
from numba.extending import register_jitable

from slms.kernels.cpu.memory import FLOAT, HALF, I32, I64, fetch, floats, intrinsic, stay_apart, void
from slms.kernels.cpu.vectors import (
    LANES,
    VECTOR,
    ZERO,
    add_product,
    lanes_below,
    load_lanes,
    spread,
    store_lanes,
    sums_of,
)

WORDS = ir.VectorType(I32, LANES)
ROWS = 8
AHEAD = 1024  # bytes; 512 to 4096 take 96 to 105 µs a matrix, none 105 (docs/log.md)


def _wide(builder, row, i, half):
    """The numbers of a row that belong to one step: one vector, or two for bfloat16."""
    if not half:
        return [load_lanes(builder, row, i, FLOAT)]
    pairs = builder.load(builder.bitcast(builder.gep(row, [i]), WORDS.as_pointer()), align=2)
    lower = builder.shl(pairs, ir.Constant(WORDS, [16] * LANES))
    upper = builder.and_(pairs, ir.Constant(WORDS, [0xFFFF0000] * LANES))
    return [builder.bitcast(bits, VECTOR) for bits in (lower, upper)]


def steps(builder, d, half, step):
    """Call step(i, load, mask) for every step's first number; load gives a row's vectors from there on."""
    width = 2 * LANES if half else LANES
    kind = HALF if half else FLOAT
    whole = builder.and_(d, I64(-width))
    with cgutils.for_range_slice(builder, I64(0), whole, I64(width), inc=True) as (i, _):
        step(i, lambda row: _wide(builder, row, i, half), None)
    with cgutils.for_range_slice(builder, whole, d, I64(LANES), inc=True) as (i, _):
        mask = lanes_below(builder, builder.sub(d, i))
        step(i, lambda row: [load_lanes(builder, row, i, kind, mask)], mask)


def dots(builder, rows, x, d, half, ahead=lambda i: None):
    """The products of rows with x [d], a vector; `ahead` is called with every step's first number."""
    sums = [cgutils.alloca_once_value(builder, ZERO) for _ in rows]
    for total in sums:
        builder.store(ZERO, total)

    def step(i, load, mask):
        ahead(i)
        vectors = [load(row) for row in rows]
        for part in range(len(vectors[0])):
            numbers = load_lanes(builder, x, builder.add(i, I64(part * LANES)), FLOAT, mask)
            for vector, total in zip(vectors, sums, strict=True):
                builder.store(add_product(builder, vector[part], numbers, builder.load(total)), total)

    steps(builder, d, half, step)
    return sums_of(builder, [builder.load(total) for total in sums])


def add_rows(builder, rows, factors, y, d, half, ahead=lambda i: None):
    """y [d] += Σ_k factor_k row_k, each factor spread over a vector; `ahead` as in `dots`."""

    def step(i, load, mask):
        ahead(i)
        vectors = [load(row) for row in rows]
        for part in range(len(vectors[0])):
            at = builder.add(i, I64(part * LANES))
            total = load_lanes(builder, y, at, FLOAT, mask)
            for vector, factor in zip(vectors, factors, strict=True):
                total = add_product(builder, vector[part], factor, total)
            store_lanes(builder, total, y, at, mask)

    steps(builder, d, half, step)


def _fetcher(builder, rows):
    """A function of i that asks for the memory AHEAD of the i-th number of each row."""

    def ahead(i):
        for row in rows:
            place = builder.bitcast(builder.gep(row, [i]), ir.IntType(8).as_pointer())
            fetch(builder, builder.gep(place, [I64(AHEAD)]))

    return ahead


def _apart(builder, base, gap, count, kind):
    starts = [builder.add(base, builder.mul(gap, I64(k))) for k in range(count)]
    return [builder.inttoptr(start, kind.as_pointer()) for start in starts]


def dot_tile(n_rows: int, half: bool) -> Callable:
    """out_k = row_k · x for rows of d numbers that lie `gap` apart, and results that lie `out_gap` apart."""

    @intrinsic
    def tile(typing_context, rows, gap, x, d, out, out_gap):
        def codegen(context, builder, signature, arguments):
            rows, gap, x, d, out, out_gap = arguments
            w = _apart(builder, rows, gap, n_rows, HALF if half else FLOAT)
            token = builder.inttoptr(x, FLOAT.as_pointer())
            results = dots(builder, w, token, d, half, _fetcher(builder, w))
            for k, target in enumerate(_apart(builder, out, out_gap, n_rows, FLOAT)):
                builder.store(builder.extract_element(results, I32(k)), target)
            return context.get_dummy_value()

        return void(6), codegen

    return tile


def sum_tile(n_rows: int, half: bool) -> Callable:
    """y += Σ_k factor_k row_k for rows of d numbers that lie `gap` apart, and factors that lie `factor_gap` apart."""

    @intrinsic
    def tile(typing_context, rows, gap, factors, factor_gap, d, y):
        def codegen(context, builder, signature, arguments):
            rows, gap, factors, factor_gap, d, y = arguments
            w = _apart(builder, rows, gap, n_rows, HALF if half else FLOAT)
            target = builder.inttoptr(y, FLOAT.as_pointer())
            factors = _apart(builder, factors, factor_gap, n_rows, FLOAT)
            scales = [spread(builder, builder.load(factor)) for factor in factors]

            add_rows(builder, w, scales, target, d, half, _fetcher(builder, w))
            return context.get_dummy_value()

        return void(6), codegen

    return tile


dots_8, dots_1, dots_8h, dots_1h = (dot_tile(n, half) for half in (False, True) for n in (ROWS, 1))
sums_8, sums_1, sums_8h, sums_1h = (sum_tile(n, half) for half in (False, True) for n in (ROWS, 1))


@register_jitable
def dot_one(rows, count, x, d, out, size):
    """out[j] = row_j · x of `count` rows; x [d] float32, in lanes where the rows are bfloat16."""
    dot_spaced(rows, count, size * d, x, d, out, size)


@register_jitable
def dot_spaced(rows, count, row, x, d, out, size):
    """The same of rows that begin `row` bytes apart."""
    stay_apart()
    apart = count // ROWS
    gap, out_gap = row * apart, 4 * apart
    for j in range(apart):
        if size == 4:
            dots_8(rows + j * row, gap, x, d, out + 4 * j, out_gap)
        else:
            dots_8h(rows + j * row, gap, x, d, out + 4 * j, out_gap)
    for j in range(apart * ROWS, count):
        if size == 4:
            dots_1(rows + j * row, 0, x, d, out + 4 * j, 0)
        else:
            dots_1h(rows + j * row, 0, x, d, out + 4 * j, 0)


@register_jitable
def sum_one(rows, count, factors, d, y, size):
    """y += Σ_j factors[j] row_j; y [d] float32, in lanes where the rows are bfloat16."""
    stay_apart()
    apart = count // ROWS
    row, gap, factor_gap = size * d, size * d * apart, 4 * apart
    for j in range(apart):
        if size == 4:
            sums_8(rows + j * row, gap, factors + 4 * j, factor_gap, d, y)
        else:
            sums_8h(rows + j * row, gap, factors + 4 * j, factor_gap, d, y)
    for j in range(apart * ROWS, count):
        if size == 4:
            sums_1(rows + j * row, 0, factors + 4 * j, 0, d, y)
        else:
            sums_1h(rows + j * row, 0, factors + 4 * j, 0, d, y)


@register_jitable
def vector(address, count):
    """The `count` float32 numbers at an address."""
    return carray(floats(address), (count,))


@register_jitable
def multiply(weight, bias, x, y):
    """y [rows] = W x + b, for addresses of W [rows, columns] and of b, 0 for none; all float32."""
    stay_apart()
    dot_one(weight, y.shape[0], x.ctypes.data, x.shape[0], y.ctypes.data, 4)
    if bias != 0:
        b = vector(bias, y.shape[0])
        for i in range(y.shape[0]):
            y[i] += b[i]


@register_jitable
def to_lanes(x, d, size):
    """Copy the d numbers at x into the order that `dot_one` needs."""
    source, lanes = carray(floats(x), (d,)), np.empty(d, np.float32)
    whole = d & ~31 if size == 2 else 0
    for start in range(0, whole, 32):
        for i in range(16):
            lanes[start + i], lanes[start + 16 + i] = source[start + 2 * i], source[start + 2 * i + 1]
    for i in range(whole, d):
        lanes[i] = source[i]
    return lanes


@register_jitable
def add_lanes(y, lanes, size):
    """Add the result of `sum_one` to the numbers at y."""
    d = lanes.shape[0]
    target = carray(floats(y), (d,))
    whole = d & ~31 if size == 2 else 0
    for start in range(0, whole, 32):
        for i in range(16):
            target[start + 2 * i] += lanes[start + i]
            target[start + 2 * i + 1] += lanes[start + 16 + i]
    for i in range(whole, d):
        target[i] += lanes[i]
