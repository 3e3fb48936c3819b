"""Activations and their derivatives in compiled loops, without branches or library calls, so that they are vectorised.

`math.exp` and `math.tanh` take some 20 ns for each number, as long as 3,000 multiplications of a tile.
"""

import numpy as np
from numba.extending import register_jitable

from slms.kernels.cpu.memory import bits_as_float

GELU, GELU_TANH, RELU, SILU = range(4)
CODES = {"gelu": GELU, "gelu_new": GELU_TANH, "gelu_pytorch_tanh": GELU_TANH, "relu": RELU, "silu": SILU}

ONE, HALF, TWO = np.float32(1), np.float32(0.5), np.float32(2)
LOG2E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
# Taylor coefficients of e^r. They are used only for |r| ≤ ln 2 / 2, where the next term is below 1e-8.
C2, C3, C4, C5, C6 = (np.float32(1 / k) for k in (2, 6, 24, 120, 720))
TANH_1, TANH_3 = np.float32(0.7978845608028654), np.float32(0.044715)  # √(2/π), as in torch's tanh GELU
ROOT_HALF, INV_ROOT_2PI = np.float32(0.7071067811865476), np.float32(0.3989422804014327)
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error of erf| ≤ 1.5e-7.
ERF_P = np.float32(0.3275911)
ERF = tuple(np.float32(a) for a in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
ERF_1, ERF_2, ERF_3, ERF_4, ERF_5 = ERF


@register_jitable
def exp(x):
    """e^x of a float32 to 2e-7 relative; beyond ±87 it is that of ±87, and NaN stays NaN."""
    inside = min(max(x, np.float32(-87)), np.float32(87))  # of NaN: -87, so that the conversion is defined
    k = np.int32(inside * LOG2E + (HALF if inside > 0 else -HALF))
    r = inside - np.float32(k) * LN2_HIGH - np.float32(k) * LN2_LOW
    series = ONE + r * (ONE + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * C6)))))
    scaled = series * bits_as_float(np.uint32((k + np.int32(127)) << np.int32(23)))
    return scaled if x == x else x


@register_jitable
def sigmoid(x):
    return ONE / (ONE + exp(-x))


@register_jitable
def tanh(x):
    return ONE - TWO / (ONE + exp(TWO * x))


@register_jitable
def normal_cdf(x):
    """Φ(x) = ½(1 + erf(x / √2)) and e^(−x²/2)."""
    z = abs(x) * ROOT_HALF
    t = ONE / (ONE + ERF_P * z)
    bell = exp(-z * z)
    tail = HALF * t * (ERF_1 + t * (ERF_2 + t * (ERF_3 + t * (ERF_4 + t * ERF_5)))) * bell
    return (ONE - tail if x > 0 else tail), bell


@register_jitable
def activate(u, code, n):
    """u[:n] = act(u[:n])"""
    if code == GELU:
        for i in range(n):
            u[i] *= normal_cdf(u[i])[0]
    elif code == GELU_TANH:
        for i in range(n):
            a = u[i]
            u[i] = HALF * a * (ONE + tanh(TANH_1 * a * (ONE + TANH_3 * a * a)))
    elif code == RELU:
        for i in range(n):
            u[i] = np.float32(0) if u[i] < 0 else u[i]  # a comparison with NaN is false: NaN stays
    else:
        for i in range(n):
            u[i] *= sigmoid(u[i])


@register_jitable
def activate_and_derive(u, slope, code, n):
    """slope[:n] = act'(u[:n]), u[:n] = act(u[:n])"""
    if code == GELU:
        for i in range(n):
            a = u[i]
            share, bell = normal_cdf(a)
            u[i], slope[i] = a * share, share + a * bell * INV_ROOT_2PI
    elif code == GELU_TANH:
        for i in range(n):
            a = u[i]
            t = tanh(TANH_1 * a * (ONE + TANH_3 * a * a))
            u[i] = HALF * a * (ONE + t)
            inner = TANH_1 * (ONE + np.float32(3) * TANH_3 * a * a)
            slope[i] = HALF * (ONE + t) + HALF * a * (ONE - t * t) * inner
    elif code == RELU:
        for i in range(n):
            a = u[i]
            u[i] = np.float32(0) if a < 0 else a
            slope[i] = np.float32(0) if a <= 0 else ONE
    else:
        for i in range(n):
            a = u[i]
            s = sigmoid(a)
            u[i], slope[i] = a * s, s * (ONE + a * (ONE - s))
