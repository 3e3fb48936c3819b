"""Tile products in LLVM vector code, the inside of the compiled loops of `kernels.cpu.loops`.

Tables of addresses name the rows, so that neither tokens nor neurons are gathered or packed. A tile keeps its sums in
registers: 4 × 4 of them with 16 lanes reached 140 of the 170 GFLOP/s that MKL reaches in large products on a Xeon with
AVX-512, and keep this speed for 4 tokens, where MKL reaches half. Narrower processors use two registers for a vector.
The code is written as vectors because LLVM on its own uses half of the register on Intel processors (its preferred
width is 256 bits), which halves the speed.

All arguments of a tile are int64: addresses, counts of elements. Numbers are float32; a table of bfloat16 rows is read
as the upper halves of float32.
"""

from collections.abc import Callable
from itertools import product

from llvmlite import ir
from numba.core import cgutils

from slms.kernels.cpu.compiled import MATH
from slms.kernels.cpu.memory import FLOAT, HALF, I32, I64, intrinsic, void

LANES = 16

VECTOR = ir.VectorType(FLOAT, LANES)
ZERO = ir.Constant(VECTOR, [0.0] * LANES)
EVEN = [2 * lane for lane in range(LANES)]
ODD = [2 * lane + 1 for lane in range(LANES)]


def _element(builder, address, index, kind):
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [index])


def rows_of(builder, table, count, kind):
    """The first `count` rows that a table of addresses names."""
    entries = [_element(builder, table, I64(k), I64) for k in range(count)]
    return [builder.inttoptr(builder.load(entry), kind.as_pointer()) for entry in entries]


def lanes_below(builder, left):
    """A mask of the lanes below `left`."""
    lanes = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
    return builder.icmp_signed("<", lanes, spread(builder, left, I64))


def spread(builder, scalar, kind=FLOAT):
    vector = ir.VectorType(kind, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def load_lanes(builder, row, i, kind, mask=None):
    """Sixteen numbers from the i-th on, with zeros outside the mask."""
    vector = ir.VectorType(kind, LANES)
    pointer = builder.bitcast(builder.gep(row, [i]), vector.as_pointer())
    if mask is None:
        value = builder.load(pointer, align=2 if kind is HALF else 4)
    else:
        suffix = f"v{LANES}{'i16' if kind is HALF else 'f32'}.p0"
        signature = ir.FunctionType(vector, [pointer.type, I32, mask.type, vector])
        load = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.load.{suffix}")
        value = builder.call(load, [pointer, I32(2 if kind is HALF else 4), mask, ir.Constant(vector, [0] * LANES)])
    if kind is HALF:
        wide = ir.VectorType(I32, LANES)
        bits = builder.shl(builder.zext(value, wide), ir.Constant(wide, [16] * LANES))
        value = builder.bitcast(bits, VECTOR)
    return value


def store_lanes(builder, value, row, i, mask=None):
    pointer = builder.bitcast(builder.gep(row, [i]), VECTOR.as_pointer())
    if mask is None:
        builder.store(value, pointer, align=4)
        return
    signature = ir.FunctionType(ir.VoidType(), [VECTOR, pointer.type, I32, mask.type])
    store = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.store.v{LANES}f32.p0")
    builder.call(store, [value, pointer, I32(4), mask])


def add_product(builder, a, b, total):
    return builder.fadd(builder.fmul(a, b, flags=MATH), total, flags=MATH)


def sums_of(builder, vectors):
    """A vector whose lane k is the sum of the k-th of up to sixteen vectors, by a tree of shuffles and additions."""
    # The order that the tree gives is found by following the origin of each lane through it.
    origin = [[k] * LANES for k in range(LANES)]
    while len(origin) > 1:
        half = len(origin) // 2
        origin = [[(origin[i] + origin[i + half])[lane] for lane in EVEN] for i in range(half)]
    tree = [ZERO] * LANES
    for lane, leaf in enumerate(origin[0]):
        if lane < len(vectors):
            tree[leaf] = vectors[lane]
    while len(tree) > 1:
        half, pairs = len(tree) // 2, []
        for a, b in zip(tree[:half], tree[half:], strict=True):
            even, odd = (
                builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, LANES), order)) for order in (EVEN, ODD)
            )
            pairs.append(builder.fadd(even, odd, flags=MATH))
        tree = pairs
    return tree[0]


def dots(n_rows: int, n_tokens: int, half: bool = False) -> Callable:
    """out[j · stride + t] = row_j · token_t: one tile of an up-projection.

    rows, tokens: tables of addresses, of `n_rows` rows (bfloat16 if half) and `n_tokens` tokens, each of d numbers.
    """
    kind = HALF if half else FLOAT
    cells = list(product(range(n_rows), range(n_tokens)))

    @intrinsic
    def tile(typing_context, rows, tokens, d, out, stride):
        def codegen(context, builder, signature, arguments):
            rows, tokens, d, out, stride = arguments
            w, x = rows_of(builder, rows, n_rows, kind), rows_of(builder, tokens, n_tokens, FLOAT)

            def step(i, sums, mask=None):
                xs = [load_lanes(builder, row, i, FLOAT, mask) for row in x]
                ws = [load_lanes(builder, row, i, kind, mask) for row in w]
                return [add_product(builder, ws[j], xs[t], total) for (j, t), total in zip(cells, sums, strict=True)]

            whole = builder.and_(d, I64(-LANES))
            sums = [cgutils.alloca_once_value(builder, ZERO) for _ in cells]

            def add(i, mask=None):
                for cell, value in zip(sums, step(i, [builder.load(cell) for cell in sums], mask), strict=True):
                    builder.store(value, cell)

            with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES), inc=True) as (i, _):
                add(i)
            with builder.if_then(builder.icmp_signed("<", whole, d)):
                add(whole, lanes_below(builder, builder.sub(d, whole)))
            total = sums_of(builder, [builder.load(cell) for cell in sums])
            few = ir.VectorType(FLOAT, n_tokens)
            for j in range(n_rows):
                order = [j * n_tokens + t for t in range(n_tokens)]
                part = builder.shuffle_vector(total, total, ir.Constant(ir.VectorType(I32, n_tokens), order))
                target = _element(builder, out, builder.mul(stride, I64(j)), FLOAT)
                builder.store(part, builder.bitcast(target, few.as_pointer()), align=4)
            return context.get_dummy_value()

        return void(5), codegen

    return tile


def sums(n_out: int, width: int, half: bool = False) -> Callable:
    """out_t += Σ_k factors[k · by_row + t · by_out] · row_k: one tile of a down-projection, or of a weight's gradient.

    out: a table of the addresses of `n_out` rows of d numbers; rows: a table of n rows (bfloat16 if half). `width`
    vectors are summed at a time, the remainder of d one by one.
    """
    kind = HALF if half else FLOAT

    @intrinsic
    def tile(typing_context, out, rows, n, d, factors, by_row, by_out):
        def codegen(context, builder, signature, arguments):
            out, rows, n, d, factors, by_row, by_out = arguments
            targets = rows_of(builder, out, n_out, FLOAT)

            def columns(first, vectors, mask=None):
                cells = [(t, builder.add(first, I64(v * LANES)), v) for t, v in product(range(n_out), range(vectors))]
                totals = [
                    cgutils.alloca_once_value(builder, load_lanes(builder, targets[t], i, FLOAT, mask))
                    for t, i, _ in cells
                ]
                for (t, i, _), total in zip(cells, totals, strict=True):
                    builder.store(load_lanes(builder, targets[t], i, FLOAT, mask), total)
                with cgutils.for_range(builder, n) as loop:
                    k = loop.index
                    row = builder.inttoptr(builder.load(_element(builder, rows, k, I64)), kind.as_pointer())
                    w = [
                        load_lanes(builder, row, builder.add(first, I64(v * LANES)), kind, mask) for v in range(vectors)
                    ]
                    start = builder.mul(k, by_row)
                    for t in range(n_out):
                        at = builder.add(start, builder.mul(by_out, I64(t)))
                        factor = spread(builder, builder.load(_element(builder, factors, at, FLOAT)))
                        for (row_of, _, v), total in zip(cells, totals, strict=True):
                            if row_of == t:
                                builder.store(add_product(builder, factor, w[v], builder.load(total)), total)
                for (t, i, _), total in zip(cells, totals, strict=True):
                    store_lanes(builder, builder.load(total), targets[t], i, mask)

            wide = I64(width * LANES)
            whole = builder.mul(builder.sdiv(d, wide), wide)
            with cgutils.for_range_slice(builder, I64(0), whole, wide, inc=True) as (i, _):
                columns(i, width)
            with cgutils.for_range_slice(builder, whole, d, I64(LANES), inc=True) as (i, _):
                columns(i, 1, lanes_below(builder, builder.sub(d, i)))
            return context.get_dummy_value()

        return void(7), codegen

    return tile
