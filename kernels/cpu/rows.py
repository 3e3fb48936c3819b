"""Routed MLP on the CPU in the compiled loops of `loops`: neurons' rows are read in place, nothing is packed.

With several threads each takes its share of *every* pathway's neurons, so the work is even whatever was chosen; sums
over threads are formed in order, so results are reproducible for a number of threads. The threads are PyTorch's own
(OpenMP); where its library is not GNU's, one thread runs.

Shapes: n tokens, d model, f neurons, p pathways.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numba import carray
from numba.extending import register_jitable
from torch import Tensor

from kernels.cpu import loops
from kernels.cpu.compiled import c_function
from kernels.cpu.memory import call_for_int
from kernels.cpu.pointwise import CODES
from kernels.cpu.rows_backward import backward_loop
from kernels.cpu.team import gnu_openmp, team_size
from kernels.reference import Gradients

BEGUN, DONE = 1, 2


@register_jitable
def told(arguments):
    """What a loop is told, of which an address is known."""
    a = carray(arguments, (loops.OFFSETS,), np.int64)
    return carray(arguments, (loops.OFFSETS + a[loops.P] + 1,), np.int64)


@register_jitable
def take_part(loop, arguments):
    """Calls a loop as a thread of a team; behind the offsets each thread says how far it came."""
    a = told(arguments)
    thread, threads = np.int64(call_for_int(a[loops.THREAD])), np.int64(call_for_int(a[loops.THREADS]))
    said = carray(arguments, (a.shape[0] + threads,), np.int64)
    said[a.shape[0] + thread] = BEGUN
    loop(a, thread, threads)
    said[a.shape[0] + thread] = DONE


# One function for each loop, as numba keeps no compiled closure over a compiled function.
def forward_member(arguments):
    take_part(loops.forward_loop, arguments)


def backward_member(arguments):
    take_part(backward_loop, arguments)


MEMBERS = {loops.forward_loop: forward_member, backward_loop: backward_member}
"""What each thread of a team calls in place of a loop."""


@functools.cache
def _member(loop):
    """The loop as a C function of what it is told; compiled when first wanted."""
    return c_function(MEMBERS[loop], "void(voidptr)")


def run(loop, team: int, arguments: np.ndarray) -> None:
    """Calls loop(arguments, thread, threads) on a team of threads; MemoryError if one could not reserve what it needs.

    As with PyTorch's own operations, a process forked after that has to keep to one thread.
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
    """What a loop is told, from its first numbers and addresses."""
    return np.array([*arguments, *[0] * (loops.OFFSETS - len(arguments)), *offsets], np.int64)


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def as_float(tensor: Tensor | None) -> Tensor | None:
    """Contiguous float32. What is so already is returned at once: each operation of PyTorch costs a µs, cold three."""
    if tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.detach().float().contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.is_contiguous() else tensor.detach().contiguous()


def _total(parts: Tensor) -> Tensor:
    """The sum over threads [threads, …], without a pass over memory where there is one."""
    return parts[0] if len(parts) == 1 else parts.sum(0)


def rows_forward(
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
    """The same function as `kernels.cpu.grouped_forward`, for float32 and bfloat16, accumulated in float32."""
    (n, d), team = x.shape, team_size(W_in.nbytes * len(x), 4 * x.numel())
    y = torch.zeros(team, n, d)
    # Held here, as the loop knows addresses alone.
    held = (
        as_float(x), *map(contiguous, (W_in, b_in, W_gate, b_gate, W_out)),
        as_float(gates), chosen.contiguous(), y,
    )  # fmt: skip
    head = [n, d, len(offsets) - 1, CODES[activation], W_in.element_size(), 0, 0]
    arguments = head + [address(tensor) for tensor in held]
    run(loops.forward_loop, team, packed(arguments, offsets))
    return _total(y).to(x.dtype)


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
) -> Gradients:
    """The gradients of `rows_forward` for float32, as `kernels.cpu.grouped_backward` gives them."""
    (n, d), p, team = x.shape, len(offsets) - 1, team_size(bytes_each=4 * x.numel())
    inputs = [as_float(t) for t in (x, W_in, b_in, W_gate, b_gate, W_out, gates)]
    held = (*inputs, chosen.contiguous(), as_float(grad))

    def like(tensor: Tensor | None) -> Tensor:
        return x.new_empty(0 if tensor is None else tensor.shape)

    d_x, d_gates = torch.zeros(team, n, d), torch.zeros(team, n, p)
    dW_in, db_in, dW_gate, db_gate, dW_out = weights = [like(t) for t in (W_in, b_in, W_gate, b_gate, W_out)]
    head = [n, d, p, CODES[activation], 4, 0, 0]
    outputs = [d_x, *weights, d_gates]
    run(backward_loop, team, packed(head + [address(t) for t in (*held, *outputs)], offsets))
    return Gradients(_total(d_x), dW_in, db_in, dW_gate, db_gate, dW_out, _total(d_gates).to(gates.dtype))
