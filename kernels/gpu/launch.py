"""The forward pass of a routed MLP on a GPU, without waiting for the device.

Shapes: n tokens, d model, f neurons, p pathways, r pairs.
"""

import torch
import triton
from torch import Tensor

from slms.kernels.backends import GPU_TOKENS
from slms.kernels.call import Call
from slms.kernels.gpu import decode, grouped
from slms.kernels.gpu.choice import unit_of
from slms.kernels.gpu.masked import masked_forward
from slms.kernels.gpu.problem import Problem, places, problem
from slms.kernels.gpu.routes import RouteTable, find_routes
from slms.kernels.gpu.rows import run_rows
from slms.kernels.gpu.tiles import ADD, COMBINE_COLS, DECODE_TILES, Tile, combine_warps, family, gate_tile, upcast


def on_gpu(call: Call) -> Tensor:
    """Compute `kernels.routed_mlp` on a GPU."""
    ours = problem(call)
    if ours.empty:
        return torch.zeros_like(ours.x)
    with torch.cuda.device_of(ours.x):  # Triton launches on the current device
        if len(ours.x) <= GPU_TOKENS:
            return decode_forward(ours)
        return masked_forward(ours) if ours.small else grouped_forward(ours)


def decode_forward(call: Problem, b_out: Tensor | None = None, mean_out: Tensor | None = None) -> Tensor:
    """Run up to GPU_TOKENS tokens, and add b_out [d] and mean_out [p, d] of the pathways that are not chosen."""
    assert len(call.x) <= GPU_TOKENS, (len(call.x), GPU_TOKENS)
    if call.small:
        y = rows_forward(call)
        y = y if b_out is None else y + b_out
        return y if mean_out is None else torch.addmm(y, (~call.chosen).to(y.dtype), mean_out)
    (n, d), p = call.x.shape, call.chosen.shape[1]
    tile = DECODE_TILES[family(call.x.dtype), "one" if n == 1 else "few"]
    s = triton.cdiv(call.m, tile.rows)
    y = torch.empty_like(call.x)
    cells = call.chosen.view(torch.uint8)
    partial = torch.empty(p, s, n, d, dtype=torch.float32, device=y.device)
    if s > 0:
        tensors = (call.x, *call.weights, call.W_out, call.gates, cells, partial, call.offsets)
        decode.slices[(p, s)](*tensors, n, d, p, **call.constants, **tile.launch(n))
    begin = [partial if tensor is None else tensor for tensor in (b_out, mean_out)]  # read only where they are given
    flags = {"BIASED": b_out is not None, "MEANS": mean_out is not None, "UPCAST": upcast(y.dtype)}
    decode.add_slices[(n, triton.cdiv(d, ADD["COLS"]))](partial, cells, *begin, y, n, d, s, P=p, **flags, **ADD)
    return y


def rows_forward(call: Problem) -> Tensor:
    """Run up to GPU_TOKENS tokens by single rows, for many small pathways."""
    f = len(call.W_in)
    named = {"x": call.x, "W_in": call.W_in, "W_out": call.W_out, "weights": call.gates}
    named |= {"chosen": call.chosen.view(torch.uint8)}
    more = {"b_in": call.b_in, "W_gate": call.W_gate, "b_gate": call.b_gate}
    more |= {"unit": None if call.single else unit_of(call.bounds, call.x.device)}
    tensors = named | {name: tensor for name, tensor in more.items() if tensor is not None}
    flags = {name: call.constants[name] for name in ("ACT", "BIASED", "GATE_BIASED", "PRECISION", "UPCAST")}
    flags |= {"GATE": "none" if call.W_gate is None else "rows", "SINGLE": call.single, "LISTED": False}
    return run_rows(tensors, f, gate_tile(call.x.dtype, len(call.x), f), **flags)


def persistent(routes: RouteTable, width: int, tile: Tile) -> tuple[int]:
    """The grid of a persistent kernel: all programs that can run at once, unless there are fewer tiles."""
    most = len(routes.tile_row) * triton.cdiv(width, tile.cols)
    return (min(most, places(routes.starts.device, tile.resident)),)


def grouped_forward(call: Problem) -> Tensor:
    """Run many tokens."""
    tiles = call.tiles
    tile = tiles.up if call.W_gate is None else tiles.gated_up
    routes = find_routes(call.chosen, tile.rows, call.capacity)
    return combine(down(call, routes, tiles.down, up(call, routes, tile), call.W_out), routes, call)


def up(call: Problem, routes: RouteTable, tile: Tile) -> Tensor:
    """The weighted activations [r, m] of every pair."""
    hidden = call.x.new_empty(call.capacity, call.m)
    tensors = (call.x, *call.weights, call.gates, hidden, *routes.work, call.offsets)
    sizes = (call.x.shape[1], call.chosen.shape[1], call.m)
    grouped.up[persistent(routes, call.m, tile)](*tensors, *sizes, **call.constants, **tile.launch())
    return hidden


def down(
    call: Problem,
    routes: RouteTable,
    tile: Tile,
    hidden: Tensor,
    W: Tensor,
    hidden_gate: Tensor | None = None,
    W_gate: Tensor | None = None,
) -> Tensor:
    """hidden [r, m] times each pair's rows of W [f, d], plus the same for the gate if given: [r, d]."""
    d = W.shape[1]
    rows = hidden.new_empty(call.capacity, d)
    gate = (hidden, W) if hidden_gate is None or W_gate is None else (hidden_gate, W_gate)
    tensors, constants = (hidden, W, *gate, rows, *routes.work[1:], call.offsets), {**call.product, **tile.launch()}
    grouped.down[persistent(routes, d, tile)](*tensors, d, call.m, GATED=W_gate is not None, **constants)
    return rows


def combine(rows: Tensor, routes: RouteTable, call: Problem) -> Tensor:
    """The sum of each token's pairs: rows [r, d] -> [n, d]."""
    y = torch.empty_like(call.x)
    (n, d), p = y.shape, call.chosen.shape[1]
    grid = (n, triton.cdiv(d, COMBINE_COLS))
    constants = {"P": p, "COLS": COMBINE_COLS, "UPCAST": upcast(y.dtype)}
    grouped.combine[grid](rows, routes.pair, y, d, call.capacity, **constants, num_warps=combine_warps(y.dtype))
    return y
