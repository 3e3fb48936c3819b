"""A routed MLP from its input to its output in one compiled call: router, top-k, gates, rows and output bias.

At one token the router's three small operations and the choice cost more than its rows; a dozen operations of PyTorch
take 70 µs once a layer's weights have driven their instructions from the cache, one compiled call 10.

Shapes: n tokens, d model, h router's hidden units, f neurons, p pathways.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numba import carray
from numba.extending import register_jitable
from torch import Tensor

from kernels import rows as r
from kernels.pointwise import CODES, exp, sigmoid
from kernels.router import GATES, SIGMOID, SOFTMAX, Router
from kernels.vectors import bytes_at, floats


@register_jitable
def keep(*arrays):
    """Numba frees an array after the last use of its name, which an address taken from it does not count as."""


@register_jitable
def _scores(a, start, count, out):
    """out[p · stride + t] = score p of token start + t, without the output's bias; returns the stride."""
    stride, d, size = r.padded(count), a[r.D], a[r.SIZE]
    tokens = np.empty(stride, np.int64)
    for t in range(stride):
        tokens[t] = a[r.X] + (start + min(t, count - 1)) * 4 * d
    width = a[r.WIDTH]
    rows = np.empty(r.padded(max(width, a[r.P])), np.int64)
    features = np.empty((stride, width), np.float32)
    if width > 0:
        hidden = np.empty((r.padded(width), stride), np.float32)
        r.name_neurons(rows, a[r.ROUTER_IN], size * d, 0, width, 0)
        r.dot_rows(rows.ctypes.data, tokens.ctypes.data, width, count, d, hidden.ctypes.data, stride, size)
        bias = carray(floats(a[r.ROUTER_B_IN]), (width,))
        for t in range(stride):
            for j in range(width):
                value = hidden[j, t] + bias[j]
                features[t, j] = np.float32(0) if value < 0 else value
            tokens[t] = features.ctypes.data + t * 4 * width
        d = width
    r.name_neurons(rows, a[r.ROUTER_OUT], size * d, 0, a[r.P], 0)
    r.dot_rows(rows.ctypes.data, tokens.ctypes.data, a[r.P], count, d, out.ctypes.data, stride, size)
    keep(rows, tokens, features)
    return stride


@numba.njit(**r.OPTIONS)
def choose_loop(a, thread, threads):
    """Writes CHOSEN and GATES [n, p], and the output's bias to the first part of Y."""
    n, p, k, kind = a[r.N], a[r.P], a[r.K], a[r.GATE]
    chosen, gates = carray(bytes_at(a[r.CHOSEN]), (n, p)), carray(floats(a[r.GATES]), (n, p))
    bias, b_out = carray(floats(a[r.BIAS]), (p,)), carray(floats(a[r.ROUTER_B_OUT]), (p,))
    share = carray(floats(a[r.RAMP]), (1,))[0] if a[r.RAMP] else np.float32(1)
    y, b_y = carray(floats(a[r.Y]), (n, a[r.D])), carray(floats(a[r.B_OUT]), (a[r.D],))
    for t in range(n):
        for i in range(a[r.D]):
            y[t, i] = b_y[i] if a[r.B_OUT] else np.float32(0)
    table, s = np.empty(r.padded(p) * r.BLOCK, np.float32), np.empty(p, np.float32)
    ranked, above = np.empty(p, np.float32), np.empty(p, np.int32)
    for start in range(0, n, r.BLOCK):
        count = min(r.BLOCK, n - start)
        stride = _scores(a, start, count, table)
        for i in range(count):
            t = start + i
            for q in range(p):
                s[q] = table[q * stride + i] + b_out[q]
                ranked[q] = s[q] + bias[q]
            for q in range(p):
                above[q] = 0
            for other in range(p):  # comparisons with NaN are false: a token of NaNs chooses all, and shows it
                for q in range(p):
                    higher, same = ranked[other] > ranked[q], ranked[other] == ranked[q]
                    above[q] += np.int32(higher or (same and other < q))
            largest, total = np.float32(-np.inf), np.float32(0)
            for q in range(p):
                chosen[t, q] = above[q] < k
                largest = s[q] if chosen[t, q] and s[q] > largest else largest
            for q in range(p):
                value = exp(s[q] - largest) if kind == SOFTMAX else sigmoid(s[q]) if kind == SIGMOID else np.float32(1)
                gates[t, q] = value if chosen[t, q] else np.float32(0)
                total += gates[t, q]
            for q in range(p):
                if chosen[t, q]:
                    value = gates[t, q] * k / total if kind == SOFTMAX else gates[t, q]
                    gates[t, q] = value if share == 1 else 1 + share * (value - 1)


def fused_forward(
    x: Tensor,
    router: Router,
    W_in: Tensor,
    b_in: Tensor | None,
    W_gate: Tensor | None,
    b_gate: Tensor | None,
    W_out: Tensor,
    b_out: Tensor | None,
    offsets: Sequence[int],
    activation: str,
) -> Tensor:
    """See `kernels.fused_mlp`."""
    (n, d), p, team = x.shape, len(offsets) - 1, r.team_size()
    y = torch.empty(1, n, d) if team == 1 else torch.zeros(team, n, d)
    held = (
        r.as_float(x), r.contiguous(W_in), r.as_float(b_in), r.contiguous(W_gate), r.as_float(b_gate),
        r.contiguous(W_out), torch.empty(n, p), torch.empty(n, p, dtype=torch.bool), y,
    )  # fmt: skip
    first = (r.contiguous(router.W_in), r.as_float(router.b_in), r.contiguous(router.W_out), r.as_float(router.b_out))
    ramp = router.ramp if router.gate in ("ramp", "blend") else None
    last = (r.as_float(ramp), r.as_float(router.bias), r.as_float(b_out))
    told = r.packed(
        [
            *(n, d, p, CODES[activation], W_in.element_size(), 0, 0),
            *map(r.address, held),
            *[0] * (r.ROUTER_IN - r.Y - 1),
            *map(r.address, first),
            *(0 if router.W_in is None else len(router.W_in), router.k, GATES[router.gate]),
            *map(r.address, last),
        ],
        offsets,
    )
    choose_loop(told, 0, 1)
    r.run(r.forward_loop, team, told)
    return (y[0] if team == 1 else y.sum(0)).to(x.dtype)
