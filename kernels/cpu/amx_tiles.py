"""Matrix products on the tile registers of a CPU with AMX, in LLVM code for `amx`: bfloat16 in, float32 sums.

A tile register holds 16 rows of 64 bytes. A left operand is 16 rows of 32 numbers; a right one is 32 × 16 numbers,
stored as 16 rows of pairs: the two numbers of a pair are neighbours in the inner dimension. One instruction adds the
product of both to 16 × 16 sums: 16,384 operations in 16 cycles, sixteen times what two vector units do.

All arguments are int64: addresses, counts, and distances in bytes.
"""

from collections.abc import Callable
from itertools import product

from llvmlite import ir
from numba import types
from numba.core import cgutils

from slms.kernels.cpu.memory import I32, I64, intrinsic, void
from slms.kernels.cpu.vectors import LANES, VECTOR

BYTE, SHORT = ir.IntType(8), ir.IntType(16)
POINTER = BYTE.as_pointer()
WORDS, PAIRS = ir.VectorType(I32, LANES), ir.VectorType(SHORT, 2 * LANES)
TILE = 1024
"""bytes of a tile"""


def _pointer(builder, address, kind=BYTE):
    return builder.inttoptr(address, kind.as_pointer())


def _call(builder, name, *arguments):
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


def _at(builder, address, steps, step):
    return builder.add(address, builder.mul(step, I64(steps))) if steps else address


@intrinsic
def begin_tiles(typing_context):
    """Set all eight tile registers of this thread to 16 rows of 64 bytes."""
    settings = [1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8]

    def codegen(context, builder, signature, arguments):
        block = ir.ArrayType(BYTE, 64)
        target = cgutils.alloca_once_value(builder, ir.Constant(block, bytearray(settings)))
        _call(builder, "ldtilecfg", builder.bitcast(target, POINTER))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def end_tiles(typing_context):
    """Free the tile registers, so that the system need not save them when threads change."""

    def codegen(context, builder, signature, arguments):
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


def products(n_left: int, n_right: int) -> Callable:
    """out_ij = Σ_k left_ik right_jk, for `n_left` × `n_right` (at most 2 × 2) tiles out of 16 × 16 float32.

    left_ik lies at left + i · left_next + k · left_step, its rows left_row apart; right_jk, whose rows follow each
    other, at right + j · right_next + k · right_step. Rows of out are out_row apart.
    """

    @intrinsic
    def tile(typing_context, left, left_row, left_next, left_step, right, right_next, right_step, count, out, out_row):
        def codegen(context, builder, signature, arguments):
            left, left_row, left_next, left_step, right, right_next, right_step, count, out, out_row = arguments
            cells = list(product(range(n_left), range(n_right)))
            for cell in range(len(cells)):
                _call(builder, "tilezero", BYTE(cell))
            with cgutils.for_range(builder, count) as loop:
                a = builder.add(left, builder.mul(loop.index, left_step))
                b = builder.add(right, builder.mul(loop.index, right_step))
                for i in range(n_left):
                    _call(
                        builder, "tileloadd64", BYTE(4 + i), _pointer(builder, _at(builder, a, i, left_next)), left_row
                    )
                for j in range(n_right):
                    _call(
                        builder, "tileloadd64", BYTE(6 + j), _pointer(builder, _at(builder, b, j, right_next)), I64(64)
                    )
                for cell, (i, j) in enumerate(cells):
                    _call(builder, "tdpbf16ps", BYTE(cell), BYTE(4 + i), BYTE(6 + j))
            for cell, (i, j) in enumerate(cells):
                target = builder.add(_at(builder, out, 16 * i, out_row), I64(64 * j))
                _call(builder, "tilestored64", BYTE(cell), _pointer(builder, target), out_row)
            return context.get_dummy_value()

        return void(10), codegen

    return tile


def _shuffled(builder, a, b, order):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), order))


def _transposed(builder, rows):
    """Sixteen vectors of sixteen 32-bit words, transposed in 64 shuffles that are one instruction each."""
    blocks = range(0, LANES, 4)
    low = [b + i for b in blocks for i in (0, 16, 1, 17)]
    high = [i + 2 for i in low]
    pair_low = [b + i for b in blocks for i in (0, 1, 16, 17)]
    pair_high = [i + 2 for i in pair_low]
    even = [b + i for b in (0, 8, 16, 24) for i in range(4)]
    odd = [i + 4 for i in even]
    words = [_shuffled(builder, rows[2 * i], rows[2 * i + 1], o) for i in range(8) for o in (low, high)]
    quads = [
        _shuffled(builder, words[4 * i + half], words[4 * i + 2 + half], o)
        for i in range(4)
        for half in (0, 1)
        for o in (pair_low, pair_high)
    ]  # quads[4 i + c] has column 4 L + c of rows 4 i to 4 i + 3 in its L-th quarter
    columns = [None] * LANES
    for c in range(4):
        for half, order in enumerate((even, odd)):
            a = _shuffled(builder, quads[c], quads[4 + c], order)
            b = _shuffled(builder, quads[8 + c], quads[12 + c], order)
            columns[c + 4 * half], columns[c + 4 * half + 8] = (_shuffled(builder, a, b, o) for o in (even, odd))
    return columns


def _store_tile(builder, rows, out):
    for i, row in enumerate(rows):
        builder.store(row, _pointer(builder, builder.add(out, I64(64 * i)), row.type), align=4)


@intrinsic
def pack_tokens(typing_context, table, d, out):
    """The right operands of sixteen rows of d numbers, whose addresses a table names: one tile for 32 of the d.

    d is a multiple of 32.
    """

    def codegen(context, builder, signature, arguments):
        table, d, out = arguments
        rows = [builder.load(_pointer(builder, builder.add(table, I64(8 * t)), I64)) for t in range(LANES)]
        with cgutils.for_range_slice(builder, I64(0), d, I64(32), inc=True) as (i, _):
            offset = builder.mul(i, I64(2))
            vectors = [builder.load(_pointer(builder, builder.add(row, offset), WORDS), align=2) for row in rows]
            _store_tile(builder, _transposed(builder, vectors), builder.add(out, builder.mul(i, I64(32))))
        return context.get_dummy_value()

    return void(3), codegen


@intrinsic
def pack_rows(typing_context, rows, d, out, step):
    """The right operands of 32 rows of d numbers, d a multiple of 32: those of each 32 columns are `step` apart."""
    first = [i for k in range(LANES) for i in (k, k + 32)]
    orders = first, [i + LANES for i in first]

    def codegen(context, builder, signature, arguments):
        rows, d, out, step = arguments
        row_bytes = builder.mul(d, I64(2))
        with cgutils.for_range(builder, I64(LANES)) as pair:
            upper = builder.add(rows, builder.mul(pair.index, builder.mul(row_bytes, I64(2))))
            line = builder.add(out, builder.mul(pair.index, I64(64)))
            with cgutils.for_range(builder, builder.sdiv(d, I64(32))) as column:
                at = builder.add(upper, builder.mul(column.index, I64(64)))
                a, b = (
                    builder.load(_pointer(builder, _at(builder, at, i, row_bytes), PAIRS), align=2) for i in range(2)
                )
                target = builder.add(line, builder.mul(column.index, step))
                for j, order in enumerate(orders):
                    there = _pointer(builder, builder.add(target, I64(TILE * j)), PAIRS)
                    builder.store(_shuffled(builder, a, b, order), there, align=4)
        return context.get_dummy_value()

    return void(4), codegen


def _rounded(builder, value):
    """The bits of float32 numbers, plus what rounds their upper halves to the nearest (ties to even)."""
    bits = builder.bitcast(value, WORDS)
    odd = builder.and_(builder.lshr(bits, ir.Constant(WORDS, [16] * LANES)), ir.Constant(WORDS, [1] * LANES))
    return builder.add(builder.add(bits, odd), ir.Constant(WORDS, [0x7FFF] * LANES))


@intrinsic
def pack_hidden(typing_context, u, u_row, gates, out):
    """The left operand [16 tokens, 32 neurons] of u [32 neurons, 16 tokens] times a gate for each token, rounded."""

    def codegen(context, builder, signature, arguments):
        u, u_row, gates, out = arguments
        gate = builder.load(_pointer(builder, gates, VECTOR), align=4)
        words = []
        for j in range(LANES):
            rows = [
                builder.load(_pointer(builder, _at(builder, u, 2 * j + i, u_row), VECTOR), align=4) for i in range(2)
            ]
            a, b = (_rounded(builder, builder.fmul(row, gate)) for row in rows)
            lower = builder.lshr(a, ir.Constant(WORDS, [16] * LANES))
            upper = builder.and_(b, ir.Constant(WORDS, [0xFFFF0000] * LANES))
            words.append(builder.or_(lower, upper))
        _store_tile(builder, _transposed(builder, words), out)
        return context.get_dummy_value()

    return void(4), codegen


@intrinsic
def pack_left(typing_context, u, out):
    """Two left operands [16 neurons, 32 tokens], one after the other, of u [32 neurons, 32 tokens], rounded."""

    def codegen(context, builder, signature, arguments):
        u, out = arguments
        order = list(range(2 * LANES))
        with cgutils.for_range(builder, I64(2 * LANES)) as loop:
            row = builder.add(u, builder.mul(loop.index, I64(128)))
            halves = []
            for offset in (0, 64):
                value = builder.load(_pointer(builder, builder.add(row, I64(offset)), VECTOR), align=4)
                upper = builder.lshr(_rounded(builder, value), ir.Constant(WORDS, [16] * LANES))
                halves.append(builder.trunc(upper, ir.VectorType(SHORT, LANES)))
            target = _pointer(builder, builder.add(out, builder.mul(loop.index, I64(64))), PAIRS)
            builder.store(_shuffled(builder, halves[0], halves[1], order), target, align=4)
        return context.get_dummy_value()

    return void(2), codegen


@intrinsic
def add_row(typing_context, target, source):
    """Add 32 float32 numbers to 32 others."""

    def codegen(context, builder, signature, arguments):
        for offset in (0, 64):
            here, more = (_pointer(builder, builder.add(a, I64(offset)), VECTOR) for a in arguments)
            builder.store(builder.fadd(builder.load(here, align=4), builder.load(more, align=4)), here, align=4)
        return context.get_dummy_value()

    return void(2), codegen
