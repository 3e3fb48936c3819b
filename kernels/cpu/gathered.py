"""The products of a single token with rows that lie anywhere, at the speed of memory.

They differ from those of `single` in that a table of addresses names the rows, and in that a second table names the
rows needed next, which are fetched meanwhile: a processor fetches ahead on its own only after it has seen the beginning
of a row, which of a row of 2 KB is too late. Numbers lie in lanes as there.

All arguments of a tile are int64: addresses and counts. Shapes: d model.
"""

from collections.abc import Callable

from numba.extending import register_jitable

from slms.kernels.cpu.memory import FLOAT, HALF, I32, I64, fetch, intrinsic, stay_apart, void
from slms.kernels.cpu.single import add_rows, dots
from slms.kernels.cpu.vectors import rows_of, spread

ROWS = 12  # measured, on two processors, against 4, 6, 8 and 16; neighbouring rows take 11 % longer (docs/log.md)

NEAR = 4  # rows in the second cache, at a time; 4 to 12 take equally long, and fewer leave less of a tile unused


def _fetcher(builder, table, count, kind):
    """A function of i that asks for the memory of these rows from their i-th number on."""
    rows = rows_of(builder, table, count, kind)

    def ahead(i):
        for row in rows:
            fetch(builder, builder.gep(row, [i]))

    return ahead


def _nothing(i):
    """Rows that lie in the second cache need no fetching, which would take a fifth of the time."""


def dots_at(n_rows: int, half: bool, far: bool = True) -> Callable:
    """out[k] = row_k · x for the rows that a table names; x [d] float32. If they are far, `after` is fetched."""
    kind = HALF if half else FLOAT

    @intrinsic
    def tile(typing_context, table, after, x, d, out):
        def codegen(context, builder, signature, arguments):
            table, after, x, d, out = arguments
            w = rows_of(builder, table, n_rows, kind)
            ahead = _fetcher(builder, after, n_rows, kind) if far else _nothing
            token = builder.inttoptr(x, FLOAT.as_pointer())
            results = dots(builder, w, token, d, half, ahead)
            target = builder.inttoptr(out, FLOAT.as_pointer())
            for k in range(n_rows):
                builder.store(builder.extract_element(results, I32(k)), builder.gep(target, [I64(k)]))
            return context.get_dummy_value()

        return void(5), codegen

    return tile


def sums_at(n_rows: int, half: bool, far: bool = True) -> Callable:
    """y += Σ_k factors[k] row_k for the rows that a table names; y [d] float32. `far` as in `dots_at`."""
    kind = HALF if half else FLOAT

    @intrinsic
    def tile(typing_context, table, after, factors, d, y):
        def codegen(context, builder, signature, arguments):
            table, after, factors, d, y = arguments
            w = rows_of(builder, table, n_rows, kind)
            ahead = _fetcher(builder, after, n_rows, kind) if far else _nothing
            target, first = (builder.inttoptr(place, FLOAT.as_pointer()) for place in (y, factors))
            scales = [spread(builder, builder.load(builder.gep(first, [I64(k)]))) for k in range(n_rows)]

            add_rows(builder, w, scales, target, d, half, ahead)
            return context.get_dummy_value()

        return void(5), codegen

    return tile


dots_n, dots_1, dots_nh, dots_1h = (dots_at(n, half) for half in (False, True) for n in (ROWS, 1))
sums_n, sums_1, sums_nh, sums_1h = (sums_at(n, half) for half in (False, True) for n in (ROWS, 1))
dots_near, sums_near = dots_at(NEAR, False, far=False), sums_at(NEAR, False, far=False)


@register_jitable
def dot_rows_at(table, count, x, d, out, size):
    """out[j] = row_j · x of the rows at a table of `count` addresses, behind which ROWS more may be fetched."""
    stay_apart()
    whole = count // ROWS * ROWS
    for j in range(0, whole, ROWS):
        if size == 4:
            dots_n(table + 8 * j, table + 8 * (j + ROWS), x, d, out + 4 * j)
        else:
            dots_nh(table + 8 * j, table + 8 * (j + ROWS), x, d, out + 4 * j)
    for j in range(whole, count):
        if size == 4:
            dots_1(table + 8 * j, table + 8 * (j + 1), x, d, out + 4 * j)
        else:
            dots_1h(table + 8 * j, table + 8 * (j + 1), x, d, out + 4 * j)


@register_jitable
def add_rows_at(table, count, factors, d, y, size):
    """y += Σ_j factors[j] row_j of the same rows; y [d] float32."""
    stay_apart()
    whole = count // ROWS * ROWS
    for j in range(0, whole, ROWS):
        if size == 4:
            sums_n(table + 8 * j, table + 8 * (j + ROWS), factors + 4 * j, d, y)
        else:
            sums_nh(table + 8 * j, table + 8 * (j + ROWS), factors + 4 * j, d, y)
    for j in range(whole, count):
        if size == 4:
            sums_1(table + 8 * j, table + 8 * (j + 1), factors + 4 * j, d, y)
        else:
            sums_1h(table + 8 * j, table + 8 * (j + 1), factors + 4 * j, d, y)
