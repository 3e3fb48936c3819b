"""The backward pass of a routed MLP on a GPU, without waiting for the device.

Shapes: n tokens, d model, f neurons, p pathways, r pairs.
"""

import torch
import triton
from torch import Tensor

from slms.kernels.call import Call, Gradients
from slms.kernels.gpu import gradients
from slms.kernels.gpu.launch import combine, down, persistent
from slms.kernels.gpu.masked import masked_backward
from slms.kernels.gpu.problem import Problem, problem
from slms.kernels.gpu.routes import RouteTable, find_routes
from slms.kernels.gpu.tiles import Tile


def on_gpu_backward(grad: Tensor, call: Call) -> Gradients:
    """The gradients of `kernels.gpu.launch.on_gpu`; empty tensors for absent inputs."""
    with torch.cuda.device_of(call.x):  # Triton launches on the current device
        return _gradients(grad, problem(call))


def _gradients(grad: Tensor, call: Problem) -> Gradients:
    if call.empty:
        inputs = (call.x, call.W_in, call.b_in, call.W_gate, call.b_gate, call.W_out, call.gates)
        return Gradients(*(call.x.new_empty(0) if t is None else torch.zeros_like(t) for t in inputs))
    grad = grad.contiguous()
    if call.small:
        return masked_backward(grad, call)
    (n, d), p, m = call.x.shape, call.chosen.shape[1], call.m
    tiles = call.tiles
    tile = tiles.hidden if call.W_gate is None else tiles.gated_hidden
    routes = find_routes(call.chosen, tile.rows, call.capacity)
    hidden, du, dv = (call.x.new_empty(call.capacity, m if needed else 0) for needed in (1, 1, call.W_gate is not None))
    columns = triton.cdiv(m, tile.cols)
    d_gates = torch.zeros(columns, n, p, dtype=torch.float32, device=grad.device)
    tensors = (call.x, grad, *call.weights, call.W_out, call.gates, hidden, du, dv, d_gates, *routes.work, call.offsets)
    grid = persistent(routes, m, tile)
    gradients.hidden_gradients[grid](*tensors, d, p, m, n * p, **call.constants, **tile.launch())
    if call.W_gate is None:
        rows = down(call, routes, tiles.down, du, call.W_in)
        dW_gate, db_gate = call.x.new_empty(0), call.x.new_empty(0)
    else:
        rows = down(call, routes, tiles.gated_down, du, call.W_in, dv, call.W_gate)
        dW_gate, db_gate = weight_gradient(call, routes, tiles.weight, dv, call.x, call.b_gate)
    dx = combine(rows, routes, call)
    dW_in, db_in = weight_gradient(call, routes, tiles.weight, du, call.x, call.b_in)
    dW_out, _ = weight_gradient(call, routes, tiles.weight, hidden, grad, None)
    return Gradients(dx, dW_in, db_in, dW_gate, db_gate, dW_out, d_gates.sum(0).to(call.gates.dtype))


def weight_gradient(
    call: Problem, routes: RouteTable, tile: Tile, left: Tensor, right: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """leftᵀ times each pair's row of right, for left [r, m] and right [n, d]: [f, d]; and the sum of left if biased."""
    (f, d), p = call.W_in.shape, call.chosen.shape[1]
    out, d_bias = left.new_empty(f, d), left.new_empty(0 if bias is None else f)
    # Pathway by pathway, so that the data that its tiles share is in L2.
    grid = (triton.cdiv(call.m, tile.rows), triton.cdiv(d, tile.cols), p)
    tensors = (left, right, out, d_bias, routes.token, routes.starts, call.offsets)
    constants = {"BIASED": bias is not None, **call.product, **tile.launch()}
    gradients.weight_gradient[grid](*tensors, d, call.m, **constants)
    return out, d_bias
