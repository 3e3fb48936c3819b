"""Addresses, bits and calls that the compiled loops of this package need and numba alone does not give."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, extending, types
from numba.core import cgutils
from numba.extending import register_jitable

intrinsic: Any = extending.intrinsic  # its stubs ask callers for the typing context too

FLOAT, HALF, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def void(arguments: int):
    """The signature of an intrinsic without a result that takes this many int64."""
    return types.void(*[types.int64] * arguments)


@intrinsic
def stay_apart(typing_context):
    """Keep the calling function from being inlined into others, which would each take seconds longer to compile."""

    def codegen(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def bits_as_float(typing_context, bits):
    """The float32 of these 32 bits."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], FLOAT)

    return types.float32(types.uint32), codegen


@intrinsic
def float_as_bits(typing_context, value):
    """The bits of a float32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], I32)

    return types.uint32(types.float32), codegen


def _pointer_at(element, kind):
    @intrinsic
    def pointer(typing_context, address):
        def codegen(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], element.as_pointer())

        return types.CPointer(kind)(types.int64), codegen

    return pointer


# Pointers at an address, for `numba.carray`.
floats = _pointer_at(FLOAT, types.float32)
bytes_at = _pointer_at(ir.IntType(8), types.uint8)
halves = _pointer_at(HALF, types.uint16)
short_integers = _pointer_at(I32, types.int32)
integers = _pointer_at(I64, types.int64)


@intrinsic
def call_for_int(typing_context, address):
    """The result of a C function without arguments that returns an int, at this address."""

    def codegen(context, builder, signature, arguments):
        function = builder.inttoptr(arguments[0], ir.FunctionType(I32, []).as_pointer())
        return builder.call(function, [])

    return types.int32(types.int64), codegen


def fetch(builder, pointer):
    """Ask for the 64 bytes at a pointer to be brought to the second cache; it never faults.

    The first cache is too small for what is asked for ahead: rows asked for there arrive a third slower (docs/log.md).
    """
    pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    instruction = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(instruction, [pointer, I32(0), I32(2), I32(1)])  # to read, moderately local, data


@intrinsic
def prefetch(typing_context, address):
    """`fetch`, for compiled loops."""

    def codegen(context, builder, signature, arguments):
        fetch(builder, builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@register_jitable
def fetch_share(start, end, t, n):
    """The part of the memory from start to end that tokens t to t + 4 of n fetch."""
    for address in range(start + (end - start) * t // n // 64 * 64, start + (end - start) * (t + 4) // n, 64):
        prefetch(address)


@register_jitable
def numbers(address, count, size):
    """A vector as float32: itself if its numbers have four bytes, else a wider copy; empty at address 0."""
    if address == 0:
        return np.empty(0, np.float32)
    if size == 4:
        return carray(floats(address), (count,))
    stored, wide = carray(halves(address), (count,)), np.empty(count, np.float32)
    for i in range(count):
        wide[i] = bits_as_float(np.uint32(stored[i]) << np.uint32(16))
    return wide


@register_jitable
def keep(*arrays):
    """Keep arrays alive: numba frees an array after the last use of its name, and its address is no such use."""


@register_jitable
def narrow(source, target, count):
    """Write float32 numbers as bfloat16 from one address to another, rounded to the nearest (ties to even)."""
    numbers, stored = carray(floats(source), (count,)), carray(halves(target), (count,))
    for i in range(count):
        bits = float_as_bits(numbers[i])
        rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        stored[i] = np.uint16((rounded if numbers[i] == numbers[i] else np.uint32(0x7FC00000)) >> np.uint32(16))


@register_jitable
def widen(source, target, size):
    """Fill target [f] with the numbers at an address, of `size` bytes each."""
    n = target.shape[0]
    if size == 4:
        whole = carray(floats(source), (n,))
        for i in range(n):
            target[i] = whole[i]
    else:
        half = carray(halves(source), (n,))
        for i in range(n):
            target[i] = bits_as_float(np.uint32(half[i]) << np.uint32(16))


@register_jitable
def put(source, target, count, size):
    """Write float32 numbers from one address to another, there of `size` bytes each."""
    if size == 2:
        narrow(source, target, count)
    else:
        numbers, stored = carray(floats(source), (count,)), carray(floats(target), (count,))
        for i in range(count):
            stored[i] = numbers[i]
