"""Causal attention for heads of 4 or 8 dimensions on the CPU, forward and backward, compiled by numba.

Libraries compute q kᵀ as a matrix product over the head's size; at a size of 4 their kernels idle. Here the vectors run
over keys instead, and four queries are handled at once:

    S_ij = q_i · k_j,  P_ij = exp(S_ij − L_i),  L_i = log Σ_j exp S_ij,  o_i = Σ_j P_ij v_j,  i − window < j ≤ i
    dS_ij = P_ij (g_i · v_j − g_i · o_i),  dq_i = Σ_j dS_ij k_j,  dk_j = Σ_i dS_ij q_i,  dv_j = Σ_i P_ij g_i

(This is FlashAttention-2, arXiv:2307.08691, without tiles, as a row of at most LONGEST scores fits the first cache.)

Shapes: b batch, t position, h heads, e head size. All tensors are [b, t, h, e], contiguous, fp32.
"""

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable
from torch import Tensor, library

LONGEST = 2048
SIZES = (4, 8)
ROW = LONGEST + 16  # not a power of two, because such rows would share the sets of a cache
ROW2, ROW3 = 2 * ROW, 3 * ROW
f32 = np.float32
UNSEEN = f32(-1e30)
# The compiler may reorder sums, or it could not vectorise them; NaN keeps its meaning.
JIT: dict[str, Any] = dict(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy")


@intrinsic
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@register_jitable
def _exp(x):
    """Compute e^x = 2^n e^r for x ≤ 0 (Cephes' expf), which vectorises, unlike libm's; the result is 0 below e^−70.

    Subnormal numbers, which come soon below that, cost a hundred times as much as a normal product.
    """
    n = np.floor(x * f32(1.4426950408889634) + f32(0.5))
    r = x - n * f32(0.693359375) + n * f32(2.12194440e-4)
    p = f32(1.9875691500e-4) * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * r * r + r + f32(1.0)
    power = (np.int32(n) + np.int32(127)) << np.int32(23)
    return f32(0.0) if x < f32(-70.0) else p * _float_of_bits(power)  # type: ignore[call-arg]  # an intrinsic


# Scores S and W have four rows of ROW columns. Keys K and values V have one row per dimension; four are used at a time.
# Queries Q and gradients G hold 16 numbers [position, dimension] for every four positions and four dimensions.
@register_jitable
def _four(X, x):
    return X[x], X[x + 1], X[x + 2], X[x + 3]


@register_jitable
def _column(X, j):
    return X[j], X[ROW + j], X[ROW2 + j], X[ROW3 + j]


@register_jitable
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]


@register_jitable
def _plus(a, s, b):
    return a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2], a[3] + s * b[3]


@numba.njit(**JIT)
def _scores(S, K, Q, x, subtract, m, first):
    """S[r, j] = Q[r] · K[j] − subtract[r], or += Q[r] · K[j] for all but the first dimensions."""
    a, b, c, d, minus = _four(Q, x), _four(Q, x + 4), _four(Q, x + 8), _four(Q, x + 12), subtract
    if first:
        for j in range(m):
            k = _column(K, j)
            S[j], S[ROW + j] = _dot(a, k) - minus[0], _dot(b, k) - minus[1]
            S[ROW2 + j], S[ROW3 + j] = _dot(c, k) - minus[2], _dot(d, k) - minus[3]
    else:
        for j in range(m):
            k = _column(K, j)
            S[j], S[ROW + j] = S[j] + _dot(a, k), S[ROW + j] + _dot(b, k)
            S[ROW2 + j], S[ROW3 + j] = S[ROW2 + j] + _dot(c, k), S[ROW3 + j] + _dot(d, k)


@numba.njit(**JIT | {"fastmath": True})  # a maximum vectorises only if it may lose NaN; the exponentials keep NaN
def _maxima(S, m):
    a, b, c, d = _column(S, 0)
    for j in range(m):
        a, b, c, d = max(a, S[j]), max(b, S[ROW + j]), max(c, S[ROW2 + j]), max(d, S[ROW3 + j])
    return a, b, c, d


@numba.njit(**JIT)
def _exponentials(S, m, top):
    """S ← exp(S − top); return the sums of the four rows."""
    z0 = z1 = z2 = z3 = f32(0)
    for j in range(m):
        a, b, c, d = _column(S, j)
        a, b, c, d = _exp(a - top[0]), _exp(b - top[1]), _exp(c - top[2]), _exp(d - top[3])
        S[j], S[ROW + j], S[ROW2 + j], S[ROW3 + j] = a, b, c, d
        z0, z1, z2, z3 = z0 + a, z1 + b, z2 + c, z3 + d
    return z0, z1, z2, z3


@numba.njit(**JIT)
def _exponentials_times(S, W, m):
    """S ← exp(S), W ← W ∘ exp(S)"""
    for j in range(m):
        a, b, c, d = _column(S, j)
        a, b, c, d = _exp(a), _exp(b), _exp(c), _exp(d)
        S[j], S[ROW + j], S[ROW2 + j], S[ROW3 + j] = a, b, c, d
        W[j], W[ROW + j], W[ROW2 + j], W[ROW3 + j] = W[j] * a, W[ROW + j] * b, W[ROW2 + j] * c, W[ROW3 + j] * d


@numba.njit(**JIT)
def _gather(S, V, m):
    """Return Σ_j S[r, j] V[:, j] for the four rows."""
    zero = (f32(0), f32(0), f32(0), f32(0))
    a, b, c, d = zero, zero, zero, zero
    for j in range(m):
        s, v = _column(S, j), _column(V, j)
        a, b, c, d = _plus(a, s[0], v), _plus(b, s[1], v), _plus(c, s[2], v), _plus(d, s[3], v)
    return a, b, c, d


@numba.njit(**JIT)
def _scatter(D, S, Q, x, m):
    """D[:, j] += Σ_r S[r, j] Q[r]"""
    a, b, c, d = _four(Q, x), _four(Q, x + 4), _four(Q, x + 8), _four(Q, x + 12)
    for j in range(m):
        s = _column(S, j)
        new = _plus(_plus(_plus(_plus(_column(D, j), s[0], a), s[1], b), s[2], c), s[3], d)
        D[j], D[ROW + j], D[ROW2 + j], D[ROW3 + j] = new


@numba.njit(**JIT)
def _hide(S, i, start, stop, window):
    """Let rows i … i + 3 see only their last ``window`` keys; S begins with key ``start``."""
    for r in range(4):
        for j in range(i + r + 1, stop):
            S[r * ROW + j - start] = UNSEEN
        for j in range(start, i + r + 1 - window):
            S[r * ROW + j - start] = UNSEEN


@numba.njit(**JIT)
def _place(i, d, e):
    """Return the index of position i, dimension d in Q and G."""
    return (i // 4) * 4 * e + (d // 4) * 16 + (i % 4) * 4 + d % 4


@numba.njit(**JIT)
def _forward_heads(q, k, v, o, lse, window, low, high):
    _, t, h, e = q.shape
    K, V, S = np.zeros(e * ROW, f32), np.zeros(e * ROW, f32), np.zeros(4 * ROW, f32)
    Q = np.zeros((t + 3) * e, f32)
    none = (f32(0), f32(0), f32(0), f32(0))
    for head in range(low, high):
        b, y = head // h, head % h
        for i in range(t):
            for d in range(e):
                K[d * ROW + i], V[d * ROW + i], Q[_place(i, d, e)] = k[b, i, y, d], v[b, i, y, d], q[b, i, y, d]
        for i in range(0, t, 4):
            start, stop = max(0, i + 1 - window), min(i + 4, t)
            m = stop - start
            for d in range(0, e, 4):
                _scores(S, K[d * ROW + start :], Q, i * e + 4 * d, none, m, d == 0)
            _hide(S, i, start, stop, window)
            top = _maxima(S, m)
            total = _exponentials(S, m, top)
            for r in range(stop - i):
                lse[head, i + r] = top[r] + f32(math.log(total[r]))
            for d in range(0, e, 4):
                sums = _gather(S, V[d * ROW + start :], m)
                for r in range(stop - i):
                    for c in range(4):
                        o[b, i + r, y, d + c] = sums[r][c] / total[r]


@numba.njit(**JIT)
def _backward_heads(q, k, v, o, lse, g, dq, dk, dv, window, low, high):
    _, t, h, e = q.shape
    K, V, S, W = np.zeros(e * ROW, f32), np.zeros(e * ROW, f32), np.zeros(4 * ROW, f32), np.zeros(4 * ROW, f32)
    dK, dV = np.zeros(e * ROW, f32), np.zeros(e * ROW, f32)
    Q, G, L, go = np.zeros((t + 3) * e, f32), np.zeros((t + 3) * e, f32), np.zeros(t + 3, f32), np.zeros(t + 3, f32)
    L[t:] = -UNSEEN  # rows beyond the last position: P = 0
    for head in range(low, high):
        b, y = head // h, head % h
        for i in range(t):
            L[i], go[i] = lse[head, i], 0
            for d in range(e):
                K[d * ROW + i], V[d * ROW + i] = k[b, i, y, d], v[b, i, y, d]
                Q[_place(i, d, e)], G[_place(i, d, e)] = q[b, i, y, d], g[b, i, y, d]
                go[i] += g[b, i, y, d] * o[b, i, y, d]
        dK[:], dV[:] = 0, 0
        for i in range(0, t, 4):
            start, stop = max(0, i + 1 - window), min(i + 4, t)
            m = stop - start
            for d in range(0, e, 4):
                _scores(S, K[d * ROW + start :], Q, i * e + 4 * d, _four(L, i), m, d == 0)
                _scores(W, V[d * ROW + start :], G, i * e + 4 * d, _four(go, i), m, d == 0)
            _hide(S, i, start, stop, window)
            _exponentials_times(S, W, m)
            for d in range(0, e, 4):
                sums = _gather(W, K[d * ROW + start :], m)
                for r in range(stop - i):
                    for c in range(4):
                        dq[b, i + r, y, d + c] = sums[r][c]
                _scatter(dK[d * ROW + start :], W, Q, i * e + 4 * d, m)
                _scatter(dV[d * ROW + start :], S, G, i * e + 4 * d, m)
        for i in range(t):
            for d in range(e):
                dk[b, i, y, d], dv[b, i, y, d] = dK[d * ROW + i], dV[d * ROW + i]


@functools.cache
def _workers(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n)


def _over_heads(function, heads: int, *arrays) -> None:
    """Run a compiled function on all heads, split among as many threads as PyTorch uses."""
    n = min(torch.get_num_threads(), heads)
    if n == 1:
        function(*arrays, 0, heads)
        return
    bounds = [heads * i // n for i in range(n + 1)]
    list(_workers(n).map(lambda low, high: function(*arrays, low, high), bounds, bounds[1:]))


@library.custom_op("slms::small_heads", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    o, lse = torch.empty_like(q), q.new_empty(q.shape[0] * q.shape[2], q.shape[1])
    arrays = [x.detach().numpy() for x in (q, k, v, o, lse)]
    _over_heads(_forward_heads, len(lse), *arrays, window)
    return o, lse


@library.custom_op("slms::small_heads_backward", mutates_args=(), device_types="cpu")
def _backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, g: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    arrays = [x.detach().numpy() for x in (q, k, v, o, lse, g.contiguous(), *grads)]
    _over_heads(_backward_heads, len(lse), *arrays, window)
    return grads


@_forward.register_fake
def _(q, k, v, window):
    return torch.empty_like(q), q.new_empty(q.shape[0] * q.shape[2], q.shape[1])


@_backward.register_fake
def _(q, k, v, o, lse, g, window):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.window = inputs[3]


def _gradients(ctx, g, _) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*_backward(*ctx.saved_tensors, g, ctx.window), None)


_forward.register_autograd(_gradients, setup_context=_save)


def serves(q: Tensor) -> bool:
    """Return whether this is faster for queries [b, t, h, e], which holds for small heads in fp32 on the CPU."""
    small = q.shape[-1] in SIZES and 16 <= q.shape[1] <= LONGEST
    return small and q.device.type == "cpu" and q.dtype == torch.float32


def small_head_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Compute unscaled softmax(q kᵀ) v over each position and the window − 1 before it; all are [b, t, h, e]."""
    return _forward(q.contiguous(), k.contiguous(), v.contiguous(), window)[0]
