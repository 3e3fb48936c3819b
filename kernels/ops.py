"""The backends as PyTorch operators: `torch.compile(fullgraph=True)` and autograd pass through them.

All compute the same function, and each has its own backward; that of `kernels::rows` is float32 alone and leaves other
types to `kernels::grouped`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, library

from kernels.cpu.grouped import grouped_backward as library_backward
from kernels.cpu.grouped import grouped_forward


@library.custom_op("kernels::grouped", mutates_args=(), device_types="cpu")
def grouped(
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
    return grouped_forward(x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation)


@library.custom_op("kernels::rows", mutates_args=(), device_types="cpu")
def rows(
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
    from kernels.cpu.rows import rows_forward  # numba takes half a second to import and is optional

    return rows_forward(x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation)


@library.custom_op("kernels::amx", mutates_args=(), device_types="cpu")
def amx(
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
    from kernels.cpu.amx import amx_forward

    return amx_forward(x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation)


@library.custom_op("kernels::grouped_backward", mutates_args=(), device_types="cpu")
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return library_backward(grad, x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation)


@library.custom_op("kernels::rows_backward", mutates_args=(), device_types="cpu")
def rows_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from kernels.cpu import rows as compiled

    backward = compiled.rows_backward if x.dtype == torch.float32 else library_backward
    return backward(grad, x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation)


@library.custom_op("kernels::amx_backward", mutates_args=(), device_types="cpu")
def amx_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from kernels.cpu import amx_backward as compiled

    return compiled.amx_backward(grad, x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation)


@library.custom_op("kernels::on_gpu", mutates_args=())
def on_gpu(
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
    most: int | None = None,
) -> Tensor:
    from kernels.gpu import launch  # Triton exists for Linux alone

    return launch.on_gpu(x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation, most)


@library.custom_op("kernels::on_gpu_backward", mutates_args=())
def on_gpu_backward(
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
    most: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from kernels.gpu.backward import on_gpu_backward

    with torch.cuda.device_of(x):  # Triton launches on the current device
        return on_gpu_backward(grad, x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation, most)


def fake_forward(x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation, most=None):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def fake_backward(grad, x, W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation, most=None):
    def like(tensor: Tensor | None) -> Tensor:
        return x.new_empty(0) if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)

    return tuple(like(tensor) for tensor in (x, W_in, b_in, W_gate, b_gate, W_out, gates))


def save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:8])
    ctx.constants = inputs[8:]  # offsets, activation, and the most pathways of a token on a GPU


def _backward_by(op):
    def backward(ctx, grad):
        inputs = ctx.saved_tensors
        grads = op(grad, *inputs, *ctx.constants)
        given = [None if tensor is None else g for tensor, g in zip(inputs, grads, strict=False)]
        return *given, None, *(None for _ in ctx.constants)  # None for `chosen` too

    return backward


backwards = {grouped: grouped_backward, rows: rows_backward, amx: amx_backward, on_gpu: on_gpu_backward}
for backward in {*backwards.values()}:
    backward.register_fake(fake_backward)
for op, backward in backwards.items():
    op.register_fake(fake_forward)
    op.register_autograd(_backward_by(backward), setup_context=save_inputs)
