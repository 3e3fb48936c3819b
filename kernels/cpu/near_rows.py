"""Products of tokens with rows that lie in a cache, wherever they lie: bfloat16 or float32, summed in float32.

Bfloat16 takes the instruction that multiplies pairs (AVX512_BF16): it adds, in sixteen sums, the products of two
numbers each. Of a dot product the two are neighbours in d. A sum of rows takes two rows, whose numbers it interleaves
in registers, or one row of a matrix in which two are interleaved in memory. Factors are then bfloat16 too, as a
library's are. Float32 takes numbers as they lie.

All arguments of a tile are int64: addresses, counts, distances in bytes. Shapes: d model, a multiple of `STEP`.
"""

from collections.abc import Callable
from itertools import product

from llvmlite import ir
from numba.core import cgutils
from numba.extending import register_jitable

from slms.kernels.backends import pair_products
from slms.kernels.cpu.memory import FLOAT, HALF, I32, I64, intrinsic, stay_apart, void
from slms.kernels.cpu.vectors import LANES, VECTOR, ZERO, add_product, rows_of, spread, sums_of

STEP = 2 * LANES
"""numbers of a vector of bfloat16"""
WORDS, HALVES = ir.VectorType(I32, LANES), ir.VectorType(HALF, STEP)
QUARTER = STEP // 4  # registers are interleaved in four parts
FIRST, SECOND = (
    [part + k + row for part in range(0, STEP, QUARTER) for k in range(QUARTER // 2) for row in (start, start + STEP)]
    for start in (0, QUARTER // 2)
)
"""what of two rows, the second counted from STEP on, the first and the second interleaved vector hold"""
OF_FIRST, OF_SECOND = FIRST[::2], SECOND[::2]
"""the columns whose sums they give"""
IN_ORDER = [[(OF_FIRST + OF_SECOND).index(i) for i in range(start, start + LANES)] for start in (0, LANES)]


def _order(lanes):
    return ir.Constant(ir.VectorType(I32, len(lanes)), lanes)


def _add_pairs(builder, total, a, b):
    kind = ir.FunctionType(VECTOR, [VECTOR, WORDS, WORDS])
    instruction = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(instruction, [total, a, b])


def _load(builder, row, i, kind):
    return builder.load(builder.bitcast(builder.gep(row, [i]), kind.as_pointer()), align=2 if kind is not VECTOR else 4)


def _put(builder, value, row, i):
    builder.store(value, builder.bitcast(builder.gep(row, [i]), value.type.as_pointer()), align=4)


def _row(builder, table, k, kind):
    entry = builder.gep(builder.inttoptr(table, I64.as_pointer()), [k])
    return builder.inttoptr(builder.load(entry), kind.as_pointer())


def _at(builder, base, apart, kind, count):
    starts = [builder.add(base, builder.mul(apart, I64(t))) for t in range(count)]
    return [builder.inttoptr(start, kind.as_pointer()) for start in starts]


def _interleave(builder, first, second, i):
    """The pairs of two rows from their i-th number on: two vectors."""
    a, b = _load(builder, first, i, HALVES), _load(builder, second, i, HALVES)
    return [builder.bitcast(builder.shuffle_vector(a, b, _order(lanes)), WORDS) for lanes in (FIRST, SECOND)]


def _in_parts(builder, d, width, columns):
    """Call columns(first, vectors) for parts of d of `width` pairs of vectors, and for the rest one by one."""
    wide = I64(STEP * width)
    whole = builder.mul(builder.sdiv(d, wide), wide)
    with cgutils.for_range_slice(builder, I64(0), whole, wide, inc=True) as (i, _):
        columns(i, width)
    with cgutils.for_range_slice(builder, whole, d, I64(STEP), inc=True) as (i, _):
        columns(i, 1)


def dots(n_rows: int, half: bool) -> Callable:
    """out[k] = row_k · x for the rows that a table names; x [d] of their type, out float32."""
    kind, vector, step = (HALF, WORDS, STEP) if half else (FLOAT, VECTOR, LANES)
    add = _add_pairs if half else lambda builder, total, a, b: add_product(builder, a, b, total)

    @intrinsic
    def tile(typing_context, table, x, d, out):
        def codegen(context, builder, signature, arguments):
            table, x, d, out = arguments
            rows, token = rows_of(builder, table, n_rows, kind), builder.inttoptr(x, kind.as_pointer())
            sums = [cgutils.alloca_once_value(builder, ZERO) for _ in rows]
            for total in sums:
                builder.store(ZERO, total)
            with cgutils.for_range_slice(builder, I64(0), d, I64(step), inc=True) as (i, _):
                numbers = _load(builder, token, i, vector)
                for row, total in zip(rows, sums, strict=True):
                    builder.store(add(builder, builder.load(total), numbers, _load(builder, row, i, vector)), total)
            results = sums_of(builder, [builder.load(total) for total in sums])
            few = builder.shuffle_vector(results, results, _order(list(range(n_rows))))
            _put(builder, few, builder.inttoptr(out, FLOAT.as_pointer()), I64(0))
            return context.get_dummy_value()

        return void(4), codegen

    return tile


def sums(n_out: int, width: int, half: bool) -> Callable:
    """out_t += Σ_k factors_t[k] row_k for `count` rows that a table names; if `fresh`, = instead of +=.

    out_t: float32 [d], `out_apart` bytes from the one before; factors_t: of the rows' type, `apart` bytes from those
    before. Of bfloat16, the count is even.
    """

    @intrinsic
    def tile(typing_context, table, count, d, factors, apart, out, out_apart, fresh):
        def codegen(context, builder, signature, arguments):
            table, count, d, factors, apart, out, out_apart, fresh = arguments
            outs = _at(builder, out, out_apart, FLOAT, n_out)
            scales = _at(builder, factors, apart, I32 if half else FLOAT, n_out)
            halves, scattered, ordered = (0, LANES), (OF_FIRST, OF_SECOND), IN_ORDER

            def columns(first, vectors):
                starts = [builder.add(first, I64(STEP * v)) for v in range(vectors)]
                places = list(product(range(n_out), range(vectors)))
                totals = {(t, v, p): cgutils.alloca_once_value(builder, ZERO) for t, v in places for p in (0, 1)}
                for total in totals.values():
                    builder.store(ZERO, total)
                with builder.if_then(builder.icmp_signed("==", fresh, I64(0))):
                    for t, v in places:
                        before = [_load(builder, outs[t], builder.add(starts[v], I64(h)), VECTOR) for h in halves]
                        if half:
                            before = [builder.shuffle_vector(*before, _order(lanes)) for lanes in scattered]
                        for p in (0, 1):
                            builder.store(before[p], totals[t, v, p])

                def add(both, numbers_of):
                    for v in range(vectors):
                        for p, numbers in enumerate(numbers_of(starts[v])):
                            for t in range(n_out):
                                value = builder.load(totals[t, v, p])
                                added = (
                                    _add_pairs(builder, value, numbers, both[t])
                                    if half
                                    else add_product(builder, numbers, both[t], value)
                                )
                                builder.store(added, totals[t, v, p])

                with cgutils.for_range(builder, builder.ashr(count, I64(1)) if half else count) as loop:
                    k = loop.index
                    both = [spread(builder, builder.load(builder.gep(s, [k])), I32 if half else FLOAT) for s in scales]
                    if half:
                        pair = builder.mul(k, I64(2))
                        rows = [_row(builder, table, at, HALF) for at in (pair, builder.add(pair, I64(1)))]
                        add(both, lambda i: _interleave(builder, rows[0], rows[1], i))
                    else:
                        row = _row(builder, table, k, FLOAT)
                        add(both, lambda i: [_load(builder, row, builder.add(i, I64(h)), VECTOR) for h in halves])
                for t, v in places:
                    after = [builder.load(totals[t, v, p]) for p in (0, 1)]
                    if half:
                        after = [builder.shuffle_vector(*after, _order(lanes)) for lanes in ordered]
                    for p in (0, 1):
                        _put(builder, after[p], outs[t], builder.add(starts[v], I64(halves[p])))

            _in_parts(builder, d, width, columns)
            return context.get_dummy_value()

        return void(8), codegen

    return tile


def twins(width: int, half: bool) -> Callable:
    """out += Σ_k factors[k, 0] A_k + factors[k, 1] B_k, of 16 · `width` columns; if `fresh`, = instead of +=.

    A_k is row names[k], int32, of rows that begin at `rows` and are `apart` bytes from each other; B_k lies `other`
    bytes further, or, of bfloat16, interleaved with it. Factors [count, 2] of the rows' type, out float32.
    """

    @intrinsic
    def tile(typing_context, names, count, rows, apart, other, factors, out, fresh):
        def codegen(context, builder, signature, arguments):
            names, count, rows, apart, other, factors, out, fresh = arguments
            target, listed = builder.inttoptr(out, FLOAT.as_pointer()), builder.inttoptr(names, I32.as_pointer())
            scale, starts = builder.inttoptr(factors, I32.as_pointer()), [I64(LANES * v) for v in range(width)]
            totals = [cgutils.alloca_once_value(builder, ZERO) for _ in starts]
            for total in totals:
                builder.store(ZERO, total)
            with builder.if_then(builder.icmp_signed("==", fresh, I64(0))):
                for start, total in zip(starts, totals, strict=True):
                    builder.store(_load(builder, target, start, VECTOR), total)
            with cgutils.for_range(builder, count) as loop:
                name = builder.sext(builder.load(builder.gep(listed, [loop.index])), I64)
                row = builder.add(rows, builder.mul(name, apart))
                if half:
                    both = spread(builder, builder.load(builder.gep(scale, [loop.index])), I32)
                    start = builder.inttoptr(row, HALF.as_pointer())
                    for v, total in enumerate(totals):
                        numbers = _load(builder, start, I64(STEP * v), WORDS)
                        builder.store(_add_pairs(builder, builder.load(total), numbers, both), total)
                for part in () if half else (0, 1):
                    at = builder.add(builder.mul(loop.index, I64(2)), I64(part))
                    factor = spread(builder, builder.bitcast(builder.load(builder.gep(scale, [at])), FLOAT))
                    start = builder.inttoptr(builder.add(row, other) if part else row, FLOAT.as_pointer())
                    for v, total in enumerate(totals):
                        numbers = _load(builder, start, I64(LANES * v), VECTOR)
                        builder.store(add_product(builder, numbers, factor, builder.load(total)), total)
            for start, total in zip(starts, totals, strict=True):
                _put(builder, builder.load(total), target, start)
            return context.get_dummy_value()

        return void(8), codegen

    return tile


dots_8, dots_4, dots_2, dots_1 = (dots(n, False) for n in (8, 4, 2, 1))
TYPES = False, pair_products()  # the instruction is not compiled, nor its tiles called, where a CPU lacks it
dots_8h, dots_4h, dots_2h, dots_1h = (dots(n, TYPES[1]) for n in (8, 4, 2, 1))
sums_1, sums_1h, sums_2, sums_2h = (sums(n_out, 3, half) for n_out in (1, 2) for half in TYPES)
twins_6, twins_6h, twins_2, twins_2h = (twins(width, half) for width in (6, 2) for half in TYPES)
TWINS, FEW = 6 * LANES, 2 * LANES
"""columns of `twin_sums`, many and few"""


@register_jitable
def row_dots(table, count, x, d, out, size):
    """out[j] = row_j · x of the rows at a table of `count` addresses, of `size` bytes a number."""
    stay_apart()
    j = 0
    while count - j >= 8:
        if size == 2:
            dots_8h(table + 8 * j, x, d, out + 4 * j)
        else:
            dots_8(table + 8 * j, x, d, out + 4 * j)
        j += 8
    if count - j >= 4:
        if size == 2:
            dots_4h(table + 8 * j, x, d, out + 4 * j)
        else:
            dots_4(table + 8 * j, x, d, out + 4 * j)
        j += 4
    if count - j >= 2:
        if size == 2:
            dots_2h(table + 8 * j, x, d, out + 4 * j)
        else:
            dots_2(table + 8 * j, x, d, out + 4 * j)
        j += 2
    if count - j >= 1:
        if size == 2:
            dots_1h(table + 8 * j, x, d, out + 4 * j)
        else:
            dots_1(table + 8 * j, x, d, out + 4 * j)


@register_jitable
def row_sums(table, count, d, factors, out, size, fresh):
    """`sums` of one out."""
    stay_apart()
    if size == 2:
        sums_1h(table, count, d, factors, 0, out, 0, fresh)
    else:
        sums_1(table, count, d, factors, 0, out, 0, fresh)


@register_jitable
def two_row_sums(table, count, d, factors, apart, out, out_apart, size, fresh):
    """`sums` of two outs."""
    stay_apart()
    if size == 2:
        sums_2h(table, count, d, factors, apart, out, out_apart, fresh)
    else:
        sums_2(table, count, d, factors, apart, out, out_apart, fresh)


@register_jitable
def twin_sums(names, count, rows, apart, other, factors, out, size, fresh, many):
    """`twins` of TWINS columns if `many`, else of FEW."""
    if many and size == 2:
        twins_6h(names, count, rows, apart, other, factors, out, fresh)
    elif many:
        twins_6(names, count, rows, apart, other, factors, out, fresh)
    elif size == 2:
        twins_2h(names, count, rows, apart, other, factors, out, fresh)
    else:
        twins_2(names, count, rows, apart, other, factors, out, fresh)
