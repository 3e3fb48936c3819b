"""Gate-selected neurons on the CPU: the chosen rows in compiled loops, and the choice alone.

Shapes: n tokens, d model, f neurons, p units.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slms.kernels.cpu import gate_blocks, gate_loops, gate_twice, loops
from slms.kernels.cpu import gate_choice as slots
from slms.kernels.cpu.gate_screen import copy_in_bytes
from slms.kernels.cpu.pointwise import CODES
from slms.kernels.cpu.rows import MEMBERS, address, as_float, contiguous, packed, run, take_part
from slms.kernels.cpu.team import team_size
from slms.kernels.gate_reference import GateCall

APART = 12  # up to so many tokens take rows of their own; more of them, in float32, share blocks (docs/log.md)
CHOICE = 12 << 10  # bytes that could be read while one score of a thousand is ranked: 1 µs


def gates_member(arguments):
    take_part(gate_loops.gates_loop, arguments)


def chosen_rows_member(arguments):
    take_part(gate_loops.chosen_rows_loop, arguments)


def blocks_member(arguments):
    take_part(gate_blocks.blocks_loop, arguments)


def mask_member(arguments):
    take_part(gate_loops.mask_loop, arguments)


def ups_member(arguments):
    take_part(gate_twice.ups_loop, arguments)


def downs_member(arguments):
    take_part(gate_twice.downs_loop, arguments)


MEMBERS[gate_twice.ups_loop] = ups_member
MEMBERS[gate_twice.downs_loop] = downs_member
MEMBERS[gate_loops.gates_loop] = gates_member
MEMBERS[gate_loops.chosen_rows_loop] = chosen_rows_member
MEMBERS[gate_blocks.blocks_loop] = blocks_member
MEMBERS[gate_loops.mask_loop] = mask_member


def _arguments(
    numbers: Sequence[int], addresses: Sequence[int], choice: Sequence[Any], offsets: Sequence[int]
) -> np.ndarray:
    """A loop's arguments; `offsets` is empty for single neurons, whose number is the first of `choice`."""
    f, k, n_shared, k_out, scale, out_scale, whole_above, least, least_out = choice
    a = packed([*numbers, 0, 0, *addresses], offsets or (0, f))
    a[loops.K], a[slots.SHARED] = k, n_shared
    a[slots.SCALE], a[slots.WHOLE], a[slots.SINGLE] = scale, whole_above, not offsets
    a[slots.K_OUT], a[slots.OUT_SCALE] = -1 if k_out is None else k_out, out_scale
    a[slots.LEAST], a[slots.LEAST_OUT] = least, least_out
    return a


def interleave(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Copy both [f, d] into one tensor [f, 2, d], so that the rows of a neuron follow each other; return its halves."""
    both = torch.from_numpy(np.empty((len(first), 2, first.shape[1]), np.float32))  # numpy asks for huge pages
    torch.stack([first.detach(), second.detach()], 1, out=both)
    return both[:, 0], both[:, 1]


def interleaved(first: Tensor, second: Tensor) -> bool:
    """Whether both lie as `interleave` puts them."""
    f, d = first.shape
    apart = second.data_ptr() - first.data_ptr() == d * first.element_size()
    return f > 1 and apart and first.dtype == second.dtype and first.stride() == second.stride() == (2 * d, 1)


class GateMLP:
    """`kernels.gate_mlp` for one layer, without gradients, for float32 and bfloat16, accumulated in float32.

    It multiplies by the whole gate matrix, and of W_in and W_out by each token's chosen rows. `offsets` stand for those
    of the call, and are empty for single neurons. What the call holds must not move, but may change in place unless
    `copied` says that something of it was not contiguous. If `screened`, a copy of the gate matrix of single neurons
    that a threshold chooses spares reading it whole for a token alone; it is made once, so that matrix must not change.
    """

    def __init__(self, call: GateCall, offsets: Sequence[int], screened: bool = False) -> None:
        given, matrices = (*call[1:6], call.scale, call.out_scale), (call.W_in, call.W_gate, call.W_out)
        # Held, because the loops know only addresses.
        rows = [W if W.stride(1) == 1 else W.detach().contiguous() for W in matrices]
        W_in, W_gate, W_out = rows
        self.held = [W_in, contiguous(call.b_in), W_gate, contiguous(call.b_gate), W_out]
        self.held += [contiguous(call.scale), contiguous(call.out_scale), call.whole_above, call.least, call.least_out]
        self.copied = any(ours is not tensor for ours, tensor in zip(self.held, given, strict=False))
        self.W_gate, self.b_gate = call.W_gate, call.b_gate
        self.f, self.bytes, self.twice = len(call.scale), call.W_in.nbytes * 2, call.k_out is not None
        *weights, scale, out_scale, whole_above, least, least_out = map(address, self.held)
        numbers = 0, call.W_in.shape[1], max(1, len(offsets) - 1), CODES[call.activation], call.W_in.element_size()
        choice = self.f, call.k, call.n_shared, call.k_out, scale, out_scale, whole_above, least, least_out
        self.arguments = _arguments(numbers, [0, *weights], choice, offsets)
        self.arguments[[slots.ROW, slots.GATE_ROW, slots.OUT_ROW]] = [W.stride(0) * W.element_size() for W in rows]
        single = call.least is not None and not offsets and call.W_in.dtype == torch.float32
        self.copy = copy_in_bytes(call.W_gate) if screened and single and call.W_gate.isfinite().all() else None
        if self.copy is not None:
            self.arguments[[slots.CODES_8, slots.STEP]] = [address(part) for part in self.copy]

    def __call__(self, x: Tensor) -> Tensor:
        """Output [n, d] of x [n, d]."""
        a, (n, d) = self.arguments.copy(), x.shape
        x = x if x.is_contiguous() else x.contiguous()
        a[loops.N] = n
        if n > APART and x.dtype == torch.float32:
            y, gates = torch.empty_like(x), F.linear(x, self.W_gate, self.b_gate)
            a[loops.X], a[loops.Y], a[loops.GATES] = map(address, (x, y, gates))
            run(gate_blocks.blocks_loop, team_size(self.bytes * n), a)
            return y
        team = team_size(self.bytes)
        if team == 1:
            y = torch.empty_like(x)
            a[loops.X], a[loops.Y] = x.data_ptr(), y.data_ptr()
            gate_loops.gate_loop(a)
            return y
        wide, y = as_float(x), torch.zeros(team, n, d, dtype=torch.float32)
        gates, index = torch.empty(n, self.f, dtype=torch.float32), torch.empty(n, self.f + 1, dtype=torch.int64)
        a[loops.X], a[loops.Y], a[loops.GATES], a[slots.INDEX] = map(address, (wide, y, gates, index))
        run(gate_loops.gates_loop, team, a)
        gate_loops.choose_loop(a)
        if self.twice:
            h = torch.empty(n, self.f, dtype=torch.float32)
            a[slots.H] = address(h)
            run(gate_twice.ups_loop, team, a)
            gate_twice.keep_loop(a)
            run(gate_twice.downs_loop, team, a)
        else:
            run(gate_loops.chosen_rows_loop, team, a)
        return y.sum(0).to(x.dtype)


def gate_rows(call: GateCall, offsets: Sequence[int]) -> Tensor:
    """The output of `GateMLP` for the tokens of a call."""
    return GateMLP(call, offsets)(call.x)


def gate_choice(gate: Tensor, call: GateCall, offsets: Sequence[int]) -> Tensor:
    """Choose [n, p] bool by the gates [n, f] before their activation, float32 or bfloat16."""
    chosen = torch.empty(len(gate), len(offsets) - 1 if offsets else gate.shape[1], dtype=torch.bool)
    _mask(gate.contiguous(), call._replace(k_out=None, out_scale=None, least_out=None), offsets, chosen, None)
    return chosen


def gate_keep(up: Tensor, gate: Tensor, call: GateCall) -> Tensor:
    """The neurons [n, f] bool of a call with `k_out` that go through W_out; gate [n, f] is before its activation."""
    kept = torch.empty(gate.shape, dtype=torch.bool)
    _mask(gate.contiguous(), call, (), kept, up.contiguous(), write=False)
    return kept


def multiply_chosen(up: Tensor, gate: Tensor, call: GateCall, offsets: Sequence[int]) -> None:
    """Multiply up [n, f], in place, by the activated gates of chosen units, else by 0; gate as in `gate_choice`."""
    _mask(gate.contiguous(), call, offsets, None, up)


def _mask(
    gate: Tensor,
    call: GateCall,
    offsets: Sequence[int],
    chosen: Tensor | None,
    up: Tensor | None,
    write: bool = True,
) -> None:
    scale, out_scale = contiguous(call.scale), contiguous(call.out_scale)
    n, f = gate.shape
    numbers = n, 0, max(1, len(offsets) - 1), CODES[call.activation], gate.element_size()
    addresses = [address(gate), *[0] * 6, address(chosen), address(up) if write else 0]
    least = map(address, (scale, out_scale, call.whole_above, call.least, call.least_out))
    choice = f, call.k, call.n_shared, call.k_out, *least
    a = _arguments(numbers, addresses, choice, offsets)
    a[loops.W_IN] = address(up)
    run(gate_loops.mask_loop, team_size(CHOICE * n * f / 1024), a)
