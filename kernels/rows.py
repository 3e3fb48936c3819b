"""Routed MLP for a few tokens on the CPU: compiled loops (numba) that read just the rows of the chosen neurons.

At one to eight tokens an MLP is bound by reading its weights, and library matrix products cost more to start than the
work takes. Each weight row is read once and used for all tokens of its pathway while it is in the cache.

Shapes: n tokens, d model, f neurons, p pathways.
"""

import functools
import math
from collections.abc import Sequence

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload, register_jitable
from torch import Tensor

# Reordering sums is what lets the compiler vectorise them; NaN and infinity keep their meaning.
MATH = {"reassoc", "contract", "nsz", "arcp"}
GELU, GELU_TANH, RELU, SILU = range(4)
CHUNK = 16  # neurons whose rows stay in the first cache while all tokens of a pathway use them
CODES = {"gelu": GELU, "gelu_new": GELU_TANH, "gelu_pytorch_tanh": GELU_TANH, "relu": RELU, "silu": SILU}


@intrinsic
def _float_of_bits(typing_context, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


def _wide(value):
    """A stored number as float32; bfloat16 arrives as its uint16 bits, the upper half of a float32's."""


@overload(_wide, inline="always")
def _wide_overload(value):
    if value == types.uint16:
        return lambda value: _float_of_bits(np.uint32(value) << np.uint32(16))  # type: ignore[call-arg]
    return lambda value: value


@register_jitable
def _act(a, code):
    if code == GELU:
        return np.float32(0.5) * a * np.float32(1.0 + math.erf(a * 0.7071067811865476))
    if code == GELU_TANH:
        return np.float32(0.5) * a * np.float32(1.0 + math.tanh(0.7978845608028654 * (a + 0.044715 * a * a * a)))
    if code == RELU:
        return np.float32(0.0) if a < 0 else a  # a comparison with NaN is false: NaN stays
    return a / np.float32(1.0 + math.exp(-a))


@register_jitable
def _dot(x, W, f):
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i] * _wide(W[f, i])
    return total


@register_jitable
def _dot4(x, W, f):
    """Four rows at a time: one load of x serves four products, and four streams of memory are read at once."""
    s0 = s1 = s2 = s3 = np.float32(0)
    for i in range(x.shape[0]):
        value = x[i]
        s0 += value * _wide(W[f, i])
        s1 += value * _wide(W[f + 1, i])
        s2 += value * _wide(W[f + 2, i])
        s3 += value * _wide(W[f + 3, i])
    return s0, s1, s2, s3


@register_jitable
def _up(x, W, bias, first, last, out):
    """out[j] = x · W[first + j] + bias[first + j]"""
    m = last - first
    whole = m - m % 4
    for j in range(0, whole, 4):
        out[j], out[j + 1], out[j + 2], out[j + 3] = _dot4(x, W, first + j)
    for j in range(whole, m):
        out[j] = _dot(x, W, first + j)
    if bias.shape[0] > 0:
        for j in range(m):
            out[j] += _wide(bias[first + j])


@register_jitable
def _down(h, W, first, last, y):
    """y += Σ_j h[j] W[first + j]"""
    m = last - first
    whole = m - m % 4
    for j in range(0, whole, 4):
        f = first + j
        h0, h1, h2, h3 = h[j], h[j + 1], h[j + 2], h[j + 3]
        for i in range(y.shape[0]):
            y[i] += h0 * _wide(W[f, i]) + h1 * _wide(W[f + 1, i]) + h2 * _wide(W[f + 2, i]) + h3 * _wide(W[f + 3, i])
    for j in range(whole, m):
        hidden, f = h[j], first + j
        for i in range(y.shape[0]):
            y[i] += hidden * _wide(W[f, i])


@numba.njit(nogil=True, cache=True, fastmath=MATH, error_model="numpy")
def _rows(x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, code, y):
    """Adds to y [n, d] float32; x and gates float32; weights float32 or uint16 bits; empty arrays stand for None."""
    n = x.shape[0]
    tokens = np.empty(n, np.int64)
    u, v = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for p in range(offsets.shape[0] - 1):
        r = 0
        for t in range(n):
            if chosen[t, p]:
                tokens[r] = t
                r += 1
        if r == 0:
            continue
        for first in range(offsets[p], offsets[p + 1], CHUNK):
            last = min(first + CHUNK, offsets[p + 1])
            for q in range(r):
                t = tokens[q]
                gate = gates[t, p]
                _up(x[t], W_in, b_in, first, last, u)
                if W_gate.shape[0] > 0:
                    _up(x[t], W_gate, b_gate, first, last, v)
                    for j in range(last - first):
                        u[j] *= _act(v[j], code) * gate
                else:
                    for j in range(last - first):
                        u[j] = _act(u[j], code) * gate
                _down(u, W_out, first, last, y[t])


@functools.lru_cache
def _bounds(offsets: tuple[int, ...]) -> np.ndarray:
    return np.array(offsets, np.int64)


_NO_WEIGHTS = {dtype: torch.empty(0, 0, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
_NO_BIAS = {dtype: torch.empty(0, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}


def _array(tensor: Tensor | None, absent: Tensor) -> np.ndarray:
    tensor = (absent if tensor is None else tensor).detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


def rows_forward(
    x: Tensor,
    W_in: Tensor,
    b_in: Tensor | None,
    W_gate: Tensor | None,
    b_gate: Tensor | None,
    W_out: Tensor,
    gates: Tensor,
    chosen: Tensor,
    offsets: Sequence[int],
    activation: str,
) -> Tensor:
    """The same function as `kernels.cpu.grouped_forward`, for float32 and bfloat16, accumulated in float32."""
    no_weights, no_bias = _NO_WEIGHTS[W_in.dtype], _NO_BIAS[W_in.dtype]
    y = torch.zeros(x.shape, dtype=torch.float32)
    _rows(  # type: ignore[call-arg]
        x.detach().float().contiguous().numpy(),
        *(
            _array(tensor, absent)
            for tensor, absent in (
                (W_in, no_weights),
                (b_in, no_bias),
                (W_gate, no_weights),
                (b_gate, no_bias),
                (W_out, no_weights),
            )
        ),
        gates.detach().float().contiguous().numpy(),
        chosen.contiguous().numpy(),
        _bounds(tuple(offsets)),
        CODES[activation],
        y.numpy(),
    )
    return y.to(x.dtype)
