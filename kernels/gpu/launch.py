"""The Triton kernels put together: forward and backward of a routed MLP, without waiting for the device.

Shapes: n tokens, d model, f neurons, p pathways.
"""

import functools
from collections.abc import Sequence
from itertools import pairwise

import torch
import triton
from torch import Tensor

from kernels.cpu import Gradients
from kernels.gpu import decode, grouped
from kernels.gpu.routes import find_routes
from kernels.gpu.tiles import ACTS, COMBINE_COLS, DECODE_TILES, Tile, arithmetic, family, tiles_for, upcast

DECODE_TOKENS = 16


@functools.lru_cache
def device_offsets(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """Copied once per partition and device, so that calls and CUDA graphs copy nothing."""
    return torch.tensor(offsets, dtype=torch.int32, device=device)


def _shared(x, W_in, b_in, W_gate, b_gate, activation) -> dict:
    return {
        "ACT": ACTS[activation],
        "BIASED": b_in is not None,
        "GATED": W_gate is not None,
        "GATE_BIASED": b_gate is not None,
        **arithmetic(x.dtype),
    }


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _contiguous_if_given(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _pointers(fallback: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """A kernel takes some address for an absent tensor, and never reads it."""
    return [fallback if tensor is None else tensor for tensor in tensors]


def _combine(rows: Tensor, pair: Tensor, capacity: int, like: Tensor) -> Tensor:
    y = torch.empty_like(like, memory_format=torch.contiguous_format)
    n, d = y.shape
    if y.numel():
        grid = (n, triton.cdiv(d, COMBINE_COLS))
        grouped.combine[grid](
            rows, pair, y, d, capacity, P=pair.shape[1], COLS=COMBINE_COLS, UPCAST=upcast(y.dtype), num_warps=4
        )
    return y


def decode_forward(
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
    """`kernels.routed_mlp` for up to DECODE_TOKENS tokens."""
    assert len(x) <= DECODE_TOKENS, (len(x), DECODE_TOKENS)
    x, W_in, W_out, gates = _contiguous(x, W_in, W_out, gates)
    b_in, W_gate, b_gate = _contiguous_if_given(b_in, W_gate, b_gate)
    (n, d), p = x.shape, chosen.shape[1]
    one = n == 1
    tile = DECODE_TILES[family(x.dtype), "one" if one else "few"]
    s = triton.cdiv(max(b - a for a, b in pairwise(offsets)), tile.rows)
    y = torch.empty_like(x)
    if s == 0 or n == 0:
        return y.zero_()
    cells = chosen.contiguous().view(torch.uint8)
    partial = torch.empty(p, s, n, d, dtype=torch.float32, device=x.device)
    decode.slices[(p, s)](
        x,
        W_in,
        *_pointers(W_in, b_in, W_gate, b_gate),
        W_out,
        gates,
        cells,
        partial,
        device_offsets(tuple(offsets), x.device),
        n,
        d,
        p,
        **_shared(x, W_in, b_in, W_gate, b_gate, activation),
        ONE=one,
        N=1 if one else 16,
        ROWS=tile.rows,
        INNER=tile.inner,
        num_warps=tile.warps,
    )
    grid = (n, triton.cdiv(d, COMBINE_COLS))
    decode.add_slices[grid](partial, cells, y, n, d, s, P=p, COLS=COMBINE_COLS, UPCAST=upcast(x.dtype), num_warps=4)
    return y


def grouped_forward(
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
    """`kernels.routed_mlp` for many tokens."""
    x, W_in, W_out, gates = _contiguous(x, W_in, W_out, gates)
    b_in, W_gate, b_gate = _contiguous_if_given(b_in, W_gate, b_gate)
    d, p = x.shape[1], chosen.shape[1]
    m = max(b - a for a, b in pairwise(offsets))
    capacity = chosen.numel()
    if m == 0 or capacity == 0:
        return torch.zeros_like(x)
    tiles = tiles_for(x.dtype, len(x))
    routes = find_routes(chosen, tiles.up.rows, capacity)
    starts = device_offsets(tuple(offsets), x.device)
    count = len(routes.tile_row)
    hidden = x.new_empty(capacity, m)
    grouped.up[(count, triton.cdiv(m, tiles.up.cols))](
        x,
        W_in,
        *_pointers(W_in, b_in, W_gate, b_gate),
        gates,
        hidden,
        routes.token,
        routes.starts,
        routes.tile_pathway,
        routes.tile_row,
        starts,
        d,
        p,
        m,
        **_shared(x, W_in, b_in, W_gate, b_gate, activation),
        **tiles.up.launch(),
    )
    rows = _down(hidden, W_out, None, None, routes, starts, tiles.down)
    return _combine(rows, routes.pair, capacity, x)


def _down(hidden, W, hidden_gate, W_gate, routes, offsets, tile: Tile) -> Tensor:
    capacity, m = hidden.shape
    d = W.shape[1]
    rows = hidden.new_empty(capacity, d)
    grouped.down[(len(routes.tile_row), triton.cdiv(d, tile.cols))](
        hidden,
        W,
        *_pointers(W, hidden_gate, W_gate),
        rows,
        routes.starts,
        routes.tile_pathway,
        routes.tile_row,
        offsets,
        d,
        m,
        GATED=W_gate is not None,
        **arithmetic(W.dtype),
        **tile.launch(),
    )
    return rows


def grouped_backward(
    grad: Tensor,
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
) -> Gradients:
    """The gradients of `grouped_forward` and `decode_forward`; empty tensors for absent inputs."""
    x, W_in, W_out, gates = _contiguous(x, W_in, W_out, gates)
    b_in, W_gate, b_gate = _contiguous_if_given(b_in, W_gate, b_gate)
    grad = grad.contiguous()
    (n, d), p = x.shape, chosen.shape[1]
    m = max(b - a for a, b in pairwise(offsets))
    capacity = chosen.numel()
    if m == 0 or capacity == 0:
        return Gradients(
            *(
                x.new_empty(0) if t is None else torch.zeros_like(t)
                for t in (x, W_in, b_in, W_gate, b_gate, W_out, gates)
            )
        )
    tiles = tiles_for(x.dtype, n)
    routes = find_routes(chosen, tiles.up.rows, capacity)
    starts = device_offsets(tuple(offsets), x.device)
    hidden, du = x.new_empty(capacity, m), x.new_empty(capacity, m)
    dv = None if W_gate is None else x.new_empty(capacity, m)
    columns = triton.cdiv(m, tiles.hidden.cols)
    d_gates = torch.zeros(columns, n, p, dtype=torch.float32, device=x.device)
    grouped.hidden_gradients[(len(routes.tile_row), columns)](
        x,
        grad,
        W_in,
        *_pointers(W_in, b_in, W_gate, b_gate),
        W_out,
        gates,
        hidden,
        du,
        *_pointers(du, dv),
        d_gates,
        routes.token,
        routes.starts,
        routes.tile_pathway,
        routes.tile_row,
        starts,
        d,
        p,
        m,
        n * p,
        **_shared(x, W_in, b_in, W_gate, b_gate, activation),
        **tiles.hidden.launch(),
    )
    dx = _combine(_down(du, W_in, dv, W_gate, routes, starts, tiles.down), routes.pair, capacity, x)

    def weight(left: Tensor, right: Tensor, like: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(like)
        d_bias = x.new_empty(0) if bias is None else torch.empty_like(bias)
        tile = tiles.weight
        grouped.weight_gradient[(p, triton.cdiv(m, tile.rows), triton.cdiv(d, tile.cols))](
            left,
            right,
            out,
            *_pointers(out, None if bias is None else d_bias),
            routes.token,
            routes.starts,
            starts,
            d,
            m,
            BIASED=bias is not None,
            **arithmetic(x.dtype),
            **tile.launch(),
        )
        return out, d_bias

    dW_in, db_in = weight(du, x, W_in, b_in)
    dW_gate, db_gate = (x.new_empty(0), x.new_empty(0))
    if W_gate is not None and dv is not None:
        dW_gate, db_gate = weight(dv, x, W_gate, b_gate)
    dW_out, _ = weight(hidden, grad, W_out, None)
    return Gradients(dx, dW_in, db_in, dW_gate, db_gate, dW_out, d_gates.sum(0).to(gates.dtype))
