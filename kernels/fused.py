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

from kernels import loops
from kernels.amx import add_pathways, aligned, pack_some, spare_rows, up, whole, whole_rows
from kernels.pointwise import CODES, exp, sigmoid
from kernels.router import GATES, SIGMOID, SOFTMAX, Router
from kernels.rows import MEMBERS, address, as_float, contiguous, packed, run, team_size, told
from kernels.tiles import begin_tiles, end_tiles
from kernels.vectors import bytes_at, call_for_int, floats, numbers

BLOCK = 64  # tokens whose scores are formed at a time


@register_jitable
def _scores(a, start, count, out):
    """out[p · stride + t] = score p of token start + t, without the output's bias; returns the stride. X is float32."""
    stride, d, size = loops.padded(count), a[loops.D], a[loops.SIZE]
    tokens = np.empty(stride, np.int64)
    for t in range(stride):
        tokens[t] = a[loops.X] + (start + min(t, count - 1)) * 4 * d
    width = a[loops.WIDTH]
    rows = np.empty(loops.padded(max(width, a[loops.P])), np.int64)
    features = np.empty((stride, width), np.float32)
    if width > 0:
        hidden = np.empty((loops.padded(width), stride), np.float32)
        loops.name_neurons(rows, a[loops.ROUTER_IN], size * d, 0, width, 0)
        loops.dot_rows(rows.ctypes.data, tokens.ctypes.data, width, count, d, hidden.ctypes.data, stride, size)
        bias = numbers(a[loops.ROUTER_B_IN], width, size)
        for t in range(stride):
            for j in range(width):
                value = hidden[j, t] + bias[j]
                features[t, j] = np.float32(0) if value < 0 else value
            tokens[t] = features.ctypes.data + t * 4 * width
        d = width
    loops.name_neurons(rows, a[loops.ROUTER_OUT], size * d, 0, a[loops.P], 0)
    loops.dot_rows(rows.ctypes.data, tokens.ctypes.data, a[loops.P], count, d, out, stride, size)
    loops.keep(rows, tokens, features)
    return stride


@register_jitable
def _tile_scores(a, start, count, out):
    """As `_scores`, of at most 64 tokens in bfloat16, the first layer on tile registers."""
    d, p, width, wide, stride = a[loops.D], a[loops.P], a[loops.WIDTH], whole(a[loops.D]), 64
    n_rows, first = (width, a[loops.ROUTER_IN]) if width > 0 else (p, a[loops.ROUTER_OUT])
    inputs, zeros, padding = (
        np.empty(stride * wide + 32, np.uint16),
        np.zeros(d, np.uint16),
        np.empty(16 * wide, np.uint16),
    )
    copy, results = spare_rows(n_rows, d), np.zeros((whole(n_rows), stride), np.float32)
    rows, x = whole_rows(first, 0, n_rows, d, copy), aligned(inputs)
    pack_some(a[loops.X], np.arange(start, start + count), d, zeros.ctypes.data, padding.ctypes.data, x)
    for j in range(0, n_rows, 32):
        for t in range(0, count, 32):
            groups = 2 if count - t > 16 else 1
            up(rows + 2 * j * wide, x + 2 * t * wide, groups, wide, results.ctypes.data + 4 * (j * stride + t), stride)
    scores = carray(floats(out), (loops.padded(p), stride))
    if width > 0:
        bias, last = numbers(a[loops.ROUTER_B_IN], width, 2), np.zeros(loops.padded(p) * width, np.float32)
        last[: p * width] = numbers(a[loops.ROUTER_OUT], p * width, 2)
        for j in range(width):
            for t in range(stride):
                value = results[j, t] + bias[j]
                results[j, t] = np.float32(0) if value < 0 else value
        scores[:] = 0
        out_rows, hidden = np.empty(loops.padded(p), np.int64), np.empty(loops.padded(width), np.int64)
        loops.name_neurons(out_rows, out, 4 * stride, 0, loops.padded(p), 0)
        loops.name_neurons(hidden, results.ctypes.data, 4 * stride, 0, width, 0)
        loops.sum_rows(
            out_rows.ctypes.data, hidden.ctypes.data, p, width, stride, last.ctypes.data, 1, width, 4,
        )  # fmt: skip
        loops.keep(out_rows, hidden, last)
    else:
        scores[:p] = results[:p]
    loops.keep(inputs, zeros, padding, copy, results)
    return stride


@register_jitable
def _begin_output(a, low, high, chosen):
    """The output's bias, and where they are given the mean outputs of the pathways that are not chosen."""
    n, p, d = a[loops.N], a[loops.P], a[loops.D]
    y, bias = carray(floats(a[loops.Y]), (n, d)), numbers(a[loops.B_OUT], d, a[loops.SIZE])
    means = numbers(a[loops.MEAN], p * d, a[loops.SIZE])
    for t in range(low, high):
        for i in range(d):
            y[t, i] = bias[i] if bias.shape[0] > 0 else np.float32(0)
        for q in range(p if means.shape[0] > 0 else 0):
            if not chosen[t - low, q]:
                for i in range(d):
                    y[t, i] += means[q * d + i]


@register_jitable
def _choose(a, scores, low, high, chosen, gates):
    """Writes chosen and gates [high - low, p] of these tokens, and what the output begins with to the first part of Y.

    scores: the function that gives a block's scores, `_scores` or `_tile_scores`.
    """
    p, k, kind = a[loops.P], a[loops.K], a[loops.GATE]
    bias, b_out = numbers(a[loops.BIAS], p, a[loops.SIZE]), numbers(a[loops.ROUTER_B_OUT], p, a[loops.SIZE])
    share = numbers(a[loops.RAMP], 1, a[loops.SIZE])[0] if a[loops.RAMP] else np.float32(1)
    table, s = np.empty(loops.padded(p) * BLOCK, np.float32), np.empty(p, np.float32)
    ranked, above = np.empty(p, np.float32), np.empty(p, np.int32)
    for start in range(low, high, BLOCK):
        count = min(BLOCK, high - start)
        stride = scores(a, start, count, table.ctypes.data)
        for i in range(count):
            t = start + i - low
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
    _begin_output(a, low, high, chosen)


@numba.njit(**loops.OPTIONS)
def choose_loop(a):
    """Writes CHOSEN and GATES [n, p], and what the output begins with to the first part of Y."""
    n, p = a[loops.N], a[loops.P]
    chosen, gates = carray(bytes_at(a[loops.CHOSEN]), (n, p)), carray(floats(a[loops.GATES]), (n, p))
    _choose(a, _scores, 0, n, chosen, gates)


@numba.njit(**loops.OPTIONS)
def fused_loop(a):
    """All of it on one thread."""
    n, p = a[loops.N], a[loops.P]
    chosen, gates = np.empty((n, p), np.uint8), np.empty((n, p), np.float32)
    _choose(a, _scores, 0, n, chosen, gates)
    a[loops.CHOSEN], a[loops.GATES] = chosen.ctypes.data, gates.ctypes.data
    loops.forward_loop(a, 0, 1)
    loops.keep(chosen, gates)


@numba.njit(**loops.OPTIONS)
def fused_tiles(a, thread, threads):
    """All of it for this thread's share of the tokens, on tile registers; X is bfloat16."""
    n, p = a[loops.N], a[loops.P]
    low, high = n * thread // threads, n * (thread + 1) // threads
    chosen, gates = np.empty((high - low, p), np.uint8), np.empty((high - low, p), np.float32)
    begin_tiles()
    _choose(a, _tile_scores, low, high, chosen, gates)
    add_pathways(a, low, high, chosen, gates)
    end_tiles()


def fused_tiles_member(arguments):
    a = told(arguments)
    fused_tiles(a, np.int64(call_for_int(a[loops.THREAD])), np.int64(call_for_int(a[loops.THREADS])))


MEMBERS[fused_tiles] = fused_tiles_member


class FusedMLP:
    """See `kernels.prepare_fused`. Preparing takes 30 µs, cold 70: as long as the rows of a token."""

    def __init__(
        self,
        router: Router,
        W_in: Tensor,
        b_in: Tensor | None,
        W_gate: Tensor | None,
        b_gate: Tensor | None,
        W_out: Tensor,
        b_out: Tensor | None,
        mean_out: Tensor | None,
        offsets: Sequence[int],
        activation: str,
    ):
        given = (W_in, b_in, W_gate, b_gate, W_out, *router[:5], router.ramp, b_out, mean_out)
        # Held, as the loops know addresses alone.
        self.held = [contiguous(tensor) for tensor in given]
        self.bytes = W_out.nbytes * (2 if W_gate is None else 3)
        self.density = router.k / (len(offsets) - 1)
        self.copied = any(ours is not tensor for ours, tensor in zip(self.held, given, strict=True))
        addresses = [address(tensor) for tensor in self.held]
        first, last, bias, ramp = addresses[5:7], addresses[7:9], addresses[9], addresses[10]
        self.told = packed(
            [
                *(0, W_in.shape[1], len(offsets) - 1, CODES[activation], W_in.element_size(), 0, 0),
                *(0, *addresses[:5], 0, 0, 0),
                *[0] * (loops.ROUTER_IN - loops.Y - 1),
                *(*first, *last, len(router.W_in) if router.W_in is not None else 0, router.k, GATES[router.gate]),
                *(ramp if router.gate in ("ramp", "blend") else 0, bias, *addresses[11:]),
            ],
            offsets,
        )

    def __call__(self, x: Tensor, backend: str) -> Tensor:
        """Output [n, d] of x [n, d] by the backend that `fuses` named."""
        (n, d), a = x.shape, self.told.copy()
        team = team_size(self.bytes * min(1.0, n * self.density))
        tiles = backend == "amx"
        wide = contiguous(x) if tiles else as_float(x)
        y = torch.empty(1, n, d) if tiles or team == 1 else torch.zeros(team, n, d)
        a[loops.N], a[loops.X], a[loops.Y] = n, address(wide), y.data_ptr()
        if tiles:
            run(fused_tiles, team, a)
        elif team == 1:
            fused_loop(a)
        else:
            gates, chosen = torch.empty(n, int(a[loops.P])), torch.empty(n, int(a[loops.P]), dtype=torch.bool)
            a[loops.GATES], a[loops.CHOSEN] = gates.data_ptr(), chosen.data_ptr()
            choose_loop(a)
            run(loops.forward_loop, team, a)
        total = y[0] if len(y) == 1 else y.sum(0)
        return total if total.dtype == x.dtype else total.to(x.dtype)
