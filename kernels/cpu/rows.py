"""Routed MLP on the CPU in the compiled loops of `loops`, which read neurons' rows in place and pack nothing.

Each of several threads takes its share of *every* pathway's neurons, so the work is even whatever was chosen. Sums over
threads are formed in order, so results are reproducible for a given number of threads. The threads are PyTorch's own
(OpenMP); if its library is not GNU's, one thread runs.

Shapes: n tokens, d model, f neurons, p pathways.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numba import carray
from numba.extending import register_jitable
from torch import Tensor

from slms.kernels.call import Call, Gradients
from slms.kernels.cpu import loops
from slms.kernels.cpu.compiled import c_function
from slms.kernels.cpu.grouped import grouped_backward
from slms.kernels.cpu.memory import call_for_int
from slms.kernels.cpu.pointwise import CODES
from slms.kernels.cpu.rows_backward import backward_loop
from slms.kernels.cpu.team import gnu_openmp, team_size

BEGUN, DONE = 1, 2


@register_jitable
def arguments_at(arguments):
    """A loop's arguments, found by their address."""
    a = carray(arguments, (loops.OFFSETS,), np.int64)
    return carray(arguments, (loops.OFFSETS + a[loops.P] + 1,), np.int64)


@register_jitable
def take_part(loop, arguments):
    """Call a loop as a thread of a team; after the offsets, each thread records how far it came."""
    a = arguments_at(arguments)
    thread, threads = np.int64(call_for_int(a[loops.THREAD])), np.int64(call_for_int(a[loops.THREADS]))
    said = carray(arguments, (a.shape[0] + threads,), np.int64)
    said[a.shape[0] + thread] = BEGUN
    loop(a, thread, threads)
    said[a.shape[0] + thread] = DONE


# One function for each loop, because numba keeps no compiled closure over a compiled function.
def forward_member(arguments):
    take_part(loops.forward_loop, arguments)


def backward_member(arguments):
    take_part(backward_loop, arguments)


MEMBERS = {loops.forward_loop: forward_member, backward_loop: backward_member}
"""Loop → the function that each thread of a team calls instead."""


@functools.cache
def _member(loop):
    """The loop as a C function of its arguments, compiled on first use."""
    return c_function(MEMBERS[loop], "void(voidptr)")


def run(loop, team: int, arguments: np.ndarray) -> None:
    """Call loop(arguments, thread, threads) on a team of threads; raises MemoryError if one cannot reserve its memory.

    As with PyTorch's own operations, a process that is forked afterwards must keep to one thread.
    """
    if team == 1:
        loop(arguments, 0, 1)
    else:
        library, arguments[loops.THREAD], arguments[loops.THREADS] = gnu_openmp()
        assert library is not None, team
        shared = np.concatenate([arguments, np.zeros(team, np.int64)])
        library.GOMP_parallel(_member(loop).address, shared.ctypes.data, team, 0)
        if (shared[-team:] == BEGUN).any():  # an exception in a thread is printed and goes no further
            raise MemoryError(f"A thread of the CPU kernels could not reserve memory; {team} ran, fewer need less.")


def packed(arguments: list[int], offsets: Sequence[int]) -> np.ndarray:
    """A loop's arguments, from its first numbers and addresses."""
    return np.array([*arguments, *[0] * (loops.OFFSETS - len(arguments)), *offsets], np.int64)


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def as_float(tensor: Tensor | None) -> Tensor | None:
    """As contiguous float32. A tensor that is so is returned at once: a PyTorch operation costs 1 µs, or 3 cold."""
    if tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.detach().float().contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.is_contiguous() else tensor.detach().contiguous()


def arguments_of(call: Call, size: int, held: Sequence[Tensor | None]) -> np.ndarray:
    """A loop's arguments for a call whose weights have `size` bytes per number; `held`: tensors in `loops`' order."""
    (n, d), p = call.x.shape, call.chosen.shape[1]
    return packed([n, d, p, CODES[call.activation], size, 0, 0, *map(address, held)], call.offsets)


def empty_like_weights(call: Call) -> list[Tensor]:
    """Empty tensors for the gradients of the weights; without elements for a weight that is None."""
    return [call.x.new_empty(0 if weight is None else weight.shape) for weight in call.weights]


def _total(parts: Tensor) -> Tensor:
    """The sum over threads [threads, …], without a pass over memory if there is one thread."""
    return parts[0] if len(parts) == 1 else parts.sum(0)


def rows_forward(call: Call) -> Tensor:
    """The same function as `kernels.cpu.grouped.grouped_forward`, for float32 and bfloat16, accumulated in float32."""
    x, (n, d) = call.x, call.x.shape
    team = team_size(call.W_in.nbytes * n, 4 * x.numel())
    y = torch.zeros(team, n, d, dtype=torch.float32)
    # Held here, because the loop knows only addresses.
    held = as_float(x), *map(contiguous, call.weights), as_float(call.gates), call.chosen.contiguous(), y
    run(loops.forward_loop, team, arguments_of(call, call.W_in.element_size(), held))
    return _total(y).to(x.dtype)


def rows_backward(grad: Tensor, call: Call) -> Gradients:
    """The gradients of `rows_forward`, as `grouped_backward` gives them; in compiled loops for float32."""
    if call.x.dtype != torch.float32:
        return grouped_backward(grad, call)
    (n, d), p, team = call.x.shape, call.chosen.shape[1], team_size(bytes_each=4 * call.x.numel())
    inputs = [as_float(tensor) for tensor in (call.x, *call.weights, call.gates)]
    d_x, d_gates = torch.zeros(team, n, d, dtype=torch.float32), torch.zeros(team, n, p, dtype=torch.float32)
    weights = empty_like_weights(call)
    held = (*inputs, call.chosen.contiguous(), as_float(grad), d_x, *weights, d_gates)
    run(backward_loop, team, arguments_of(call, 4, held))
    return Gradients._make([_total(d_x), *weights, _total(d_gates).to(call.gates.dtype)])
