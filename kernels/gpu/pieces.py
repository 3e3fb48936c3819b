"""Functions that the Triton kernels share: activations with derivatives, pathways' neurons, matrix products by type.

Triton's interpreter computes on the raw bits of bfloat16 and truncates instead of rounding. Only for it, UPCAST turns
operands into float32 first and rounds results to nearest, as a GPU does.
"""

import triton
import triton.language as tl


@triton.jit
def activate(a, ACT: tl.constexpr):
    """act(a), a in float32. The tanh of GELU's approximation is written as a sigmoid: (1 + tanh z) / 2 = σ(2z)."""
    if ACT == "relu":
        return tl.where(a < 0, 0.0, a)
    elif ACT == "silu":
        return a * tl.sigmoid(a)
    elif ACT == "none":
        return a
    elif ACT == "gelu":
        return 0.5 * a * (1.0 + tl.erf(a * 0.7071067811865476))
    else:
        tl.static_assert(ACT == "gelu_tanh")
        return a * tl.sigmoid(1.5957691216057308 * (a + 0.044715 * a * a * a))


@triton.jit
def slope(a, ACT: tl.constexpr):
    """d act(a) / da, a in float32."""
    if ACT == "relu":
        return tl.where(a > 0, 1.0, 0.0)
    elif ACT == "silu":
        s = tl.sigmoid(a)
        return s * (1.0 + a * (1.0 - s))
    elif ACT == "gelu":
        return 0.5 * (1.0 + tl.erf(a * 0.7071067811865476)) + a * 0.3989422804014327 * tl.exp(-0.5 * a * a)
    else:
        tl.static_assert(ACT == "gelu_tanh")
        s = tl.sigmoid(1.5957691216057308 * (a + 0.044715 * a * a * a))
        return s + a * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * a * a)


@triton.jit
def span(offsets, pathway, ALIGNED: tl.constexpr):
    """The first neuron of a pathway and the number of its neurons.

    ALIGNED promises that all offsets divide by 16: only then may 16 bytes be loaded at a time along neurons.
    """
    first, end = tl.load(offsets + pathway), tl.load(offsets + pathway + 1)
    if ALIGNED:
        first, end = tl.multiple_of(first, 16), tl.multiple_of(end, 16)
    return first, end - first


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """total + a @ b, accumulated in float32."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def narrow(value, TYPE: tl.constexpr, UPCAST: tl.constexpr):
    """The float32 value, rounded to the type in which it is stored."""
    if UPCAST:
        bits = value.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        value = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value.to(TYPE)
