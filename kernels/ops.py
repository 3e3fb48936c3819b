"""The backends as PyTorch operators: `torch.compile(fullgraph=True)` and autograd pass through them.

All compute the same function of a `Call`, and each has its own backward; that of `rows` runs only float32 and leaves
other types to `grouped`.
"""

import functools
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library

from slms.kernels.call import Call, Gradients

IMPLEMENTATIONS = {
    "grouped": ("slms.kernels.cpu.grouped:grouped_forward", "slms.kernels.cpu.grouped:grouped_backward"),
    "rows": ("slms.kernels.cpu.rows:rows_forward", "slms.kernels.cpu.rows:rows_backward"),
    "amx": ("slms.kernels.cpu.amx:amx_forward", "slms.kernels.cpu.amx_backward:amx_backward"),
    "triton": ("slms.kernels.gpu.launch:on_gpu", "slms.kernels.gpu.backward:on_gpu_backward"),
}
"""Backend → where its two functions are: call → y, and gradient of y, call → gradients."""
INPUTS = (
    "Tensor x, Tensor W_in, Tensor? b_in, Tensor? W_gate, Tensor? b_gate, Tensor W_out, Tensor gates, Tensor chosen, "
    "SymInt[] offsets, str activation, SymInt? most=None"
)
TENSORS = 8  # of them


@functools.cache
def load(place: str) -> Callable[..., Any]:
    """The function at "module:name", imported on first use: numba takes half a second, Triton exists only for Linux."""
    return pkgutil.resolve_name(place)


def _fake_forward(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_backward(grad: Tensor, *inputs: Any) -> Gradients:
    def like(tensor: Tensor | None) -> Tensor:
        return grad.new_empty(0) if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)

    call = Call(*inputs)
    return Gradients(*map(like, (call.x, *call.weights, call.gates)))


def _save_inputs(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:TENSORS])
    ctx.constants = inputs[TENSORS:]


def _operators(name: str, forward: str, backward: str) -> tuple[library.CustomOpDef, library.CustomOpDef]:
    """Register `kernels::name` and `kernels::name_backward`."""

    def run(*inputs: Any) -> Tensor:
        return load(forward)(Call(*inputs))

    def run_backward(grad: Tensor, *inputs: Any) -> Gradients:
        return load(backward)(grad, Call(*inputs))

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        grads = of_inputs(grad, *inputs, *ctx.constants)
        given = [None if tensor is None else g for tensor, g in zip(inputs, grads, strict=False)]
        return *given, None, *(None for _ in ctx.constants)  # None for `chosen` too

    there: Any = dict(mutates_args=(), device_types=None if name == "triton" else "cpu")
    op = library.custom_op(f"kernels::{name}", run, schema=f"({INPUTS}) -> Tensor", **there)
    results = ", ".join(["Tensor"] * len(Gradients._fields))
    schema = f"(Tensor grad, {INPUTS}) -> ({results})"
    of_inputs = library.custom_op(f"kernels::{name}_backward", run_backward, schema=schema, **there)
    op.register_fake(_fake_forward)
    op.register_autograd(differentiate, setup_context=_save_inputs)
    of_inputs.register_fake(_fake_backward)
    return op, of_inputs


_pairs = {name: _operators(name, *places) for name, places in IMPLEMENTATIONS.items()}
OPERATORS = {name: forward for name, (forward, _) in _pairs.items()}
BACKWARD = {name: backward for name, (_, backward) in _pairs.items()}
