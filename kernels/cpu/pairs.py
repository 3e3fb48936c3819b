"""Products with bfloat16 rows that lie in a cache, by the instruction that multiplies pairs of them (AVX512_BF16).

The instruction adds, in sixteen float32 sums, the products of two numbers each. Of a dot product the two are
neighbours in d. A sum of rows takes two rows, whose numbers it interleaves in registers, or one row of a matrix in
which two are interleaved in memory. Factors are bfloat16 too, as a library's are.

All arguments of a tile are int64: addresses, counts, distances in bytes. Shapes: d model, a multiple of `STEP`.
"""

from collections.abc import Callable
from itertools import product

from llvmlite import ir
from numba.core import cgutils
from numba.extending import register_jitable

from slms.kernels.cpu.memory import FLOAT, HALF, I32, I64, intrinsic, stay_apart, void
from slms.kernels.cpu.vectors import LANES, VECTOR, ZERO, rows_of, spread, sums_of

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


def _load(builder, row, i, kind=WORDS):
    return builder.load(builder.bitcast(builder.gep(row, [i]), kind.as_pointer()), align=2)


def _floats_at(builder, row, i):
    return builder.bitcast(builder.gep(row, [i]), VECTOR.as_pointer())


def _row(builder, table, k):
    entry = builder.gep(builder.inttoptr(table, I64.as_pointer()), [k])
    return builder.inttoptr(builder.load(entry), HALF.as_pointer())


def _at(builder, base, apart, kind, count):
    starts = [builder.add(base, builder.mul(apart, I64(t))) for t in range(count)]
    return [builder.inttoptr(start, kind.as_pointer()) for start in starts]


def _interleave(builder, first, second, i):
    """The pairs of two rows from their i-th number on: two vectors."""
    a, b = _load(builder, first, i, HALVES), _load(builder, second, i, HALVES)
    return [builder.bitcast(builder.shuffle_vector(a, b, _order(lanes)), WORDS) for lanes in (FIRST, SECOND)]


def _in_parts(builder, d, step, width, columns):
    """Call columns(first, vectors) for parts of d of `width` vectors of `step` numbers, and for the rest one by one."""
    wide = I64(step * width)
    whole = builder.mul(builder.sdiv(d, wide), wide)
    with cgutils.for_range_slice(builder, I64(0), whole, wide, inc=True) as (i, _):
        columns(i, width)
    with cgutils.for_range_slice(builder, whole, d, I64(step), inc=True) as (i, _):
        columns(i, 1)


def pair_dots(n_rows: int) -> Callable:
    """out[k] = row_k · x for the rows that a table names; x [d] bfloat16, out float32."""

    @intrinsic
    def tile(typing_context, table, x, d, out):
        def codegen(context, builder, signature, arguments):
            table, x, d, out = arguments
            rows, token = rows_of(builder, table, n_rows, HALF), builder.inttoptr(x, HALF.as_pointer())
            sums = [cgutils.alloca_once_value(builder, ZERO) for _ in rows]
            for total in sums:
                builder.store(ZERO, total)
            with cgutils.for_range_slice(builder, I64(0), d, I64(STEP), inc=True) as (i, _):
                numbers = _load(builder, token, i)
                for row, total in zip(rows, sums, strict=True):
                    builder.store(_add_pairs(builder, builder.load(total), numbers, _load(builder, row, i)), total)
            results = sums_of(builder, [builder.load(total) for total in sums])
            few = builder.shuffle_vector(results, results, _order(list(range(n_rows))))
            builder.store(few, builder.inttoptr(out, few.type.as_pointer()), align=4)
            return context.get_dummy_value()

        return void(4), codegen

    return tile


def pair_sums(n_out: int, width: int, fresh: bool) -> Callable:
    """out_t += Σ_k factors_t[k] row_k for `pairs` times two rows that a table names; if `fresh`, = instead of +=.

    out_t: float32 [d], `out_apart` bytes from the one before; factors_t: bfloat16, `apart` bytes from those before.
    """

    @intrinsic
    def tile(typing_context, table, pairs, d, factors, apart, out, out_apart):
        def codegen(context, builder, signature, arguments):
            table, pairs, d, factors, apart, out, out_apart = arguments
            outs, scales = _at(builder, out, out_apart, FLOAT, n_out), _at(builder, factors, apart, I32, n_out)

            def columns(first, vectors):
                starts = [builder.add(first, I64(STEP * v)) for v in range(vectors)]
                totals = {}
                for t, v, part in product(range(n_out), range(vectors), (0, 1)):
                    totals[t, v, part] = cgutils.alloca_once_value(builder, ZERO)
                    builder.store(ZERO, totals[t, v, part])
                for t, v in product(range(0 if fresh else n_out), range(vectors)):
                    halves = [
                        builder.load(_floats_at(builder, outs[t], builder.add(starts[v], I64(half))), align=4)
                        for half in (0, LANES)
                    ]
                    for part, lanes in enumerate((OF_FIRST, OF_SECOND)):
                        builder.store(builder.shuffle_vector(*halves, _order(lanes)), totals[t, v, part])
                with cgutils.for_range(builder, pairs) as loop:
                    k = builder.mul(loop.index, I64(2))
                    rows = _row(builder, table, k), _row(builder, table, builder.add(k, I64(1)))
                    both = [spread(builder, builder.load(builder.gep(scale, [loop.index])), I32) for scale in scales]
                    for v in range(vectors):
                        for part, numbers in enumerate(_interleave(builder, *rows, starts[v])):
                            for t in range(n_out):
                                total = totals[t, v, part]
                                builder.store(_add_pairs(builder, builder.load(total), numbers, both[t]), total)
                for t, v in product(range(n_out), range(vectors)):
                    parts = [builder.load(totals[t, v, part]) for part in (0, 1)]
                    for half, lanes in zip((0, LANES), IN_ORDER, strict=True):
                        there = _floats_at(builder, outs[t], builder.add(starts[v], I64(half)))
                        builder.store(builder.shuffle_vector(*parts, _order(lanes)), there, align=4)

            _in_parts(builder, d, STEP, width, columns)
            return context.get_dummy_value()

        return void(7), codegen

    return tile


def twin_sums(width: int, fresh: bool) -> Callable:
    """out += Σ_k factors[k, 0] A_k + factors[k, 1] B_k, of 16 · `width` columns; if `fresh`, = instead of +=.

    A_k and B_k are interleaved in row names[k], int32, of rows bfloat16 that begin at `rows` and are `apart` bytes
    from each other; factors [count, 2] bfloat16, out float32.
    """

    @intrinsic
    def tile(typing_context, names, count, rows, apart, factors, out):
        def codegen(context, builder, signature, arguments):
            names, count, rows, apart, factors, out = arguments
            target, scale = builder.inttoptr(out, FLOAT.as_pointer()), builder.inttoptr(factors, I32.as_pointer())
            listed, starts = builder.inttoptr(names, I32.as_pointer()), [I64(LANES * v) for v in range(width)]
            totals = [cgutils.alloca_once_value(builder, ZERO) for _ in starts]
            for start, total in zip(starts, totals, strict=True):
                before = ZERO if fresh else builder.load(_floats_at(builder, target, start), align=4)
                builder.store(before, total)
            with cgutils.for_range(builder, count) as loop:
                name = builder.sext(builder.load(builder.gep(listed, [loop.index])), I64)
                row = builder.inttoptr(builder.add(rows, builder.mul(name, apart)), HALF.as_pointer())
                both = spread(builder, builder.load(builder.gep(scale, [loop.index])), I32)
                for v, total in enumerate(totals):
                    numbers = _load(builder, row, I64(STEP * v))
                    builder.store(_add_pairs(builder, builder.load(total), numbers, both), total)
            for start, total in zip(starts, totals, strict=True):
                builder.store(builder.load(total), _floats_at(builder, target, start), align=4)
            return context.get_dummy_value()

        return void(6), codegen

    return tile


dots_8, dots_4, dots_2, dots_1 = (pair_dots(n) for n in (8, 4, 2, 1))
add_pairs, put_pairs = (pair_sums(1, 3, fresh) for fresh in (False, True))
add_pairs_twice, put_pairs_twice = (pair_sums(2, 3, fresh) for fresh in (False, True))
add_twins, put_twins = (twin_sums(6, fresh) for fresh in (False, True))
add_twins_2, put_twins_2 = (twin_sums(2, fresh) for fresh in (False, True))
TWINS = 6 * LANES
"""columns of `add_twins`"""


@register_jitable
def dot_pairs_at(table, count, x, d, out):
    """out[j] = row_j · x of the rows at a table of `count` addresses."""
    stay_apart()
    j = 0
    while count - j >= 8:
        dots_8(table + 8 * j, x, d, out + 4 * j)
        j += 8
    if count - j >= 4:
        dots_4(table + 8 * j, x, d, out + 4 * j)
        j += 4
    if count - j >= 2:
        dots_2(table + 8 * j, x, d, out + 4 * j)
        j += 2
    if count - j >= 1:
        dots_1(table + 8 * j, x, d, out + 4 * j)
