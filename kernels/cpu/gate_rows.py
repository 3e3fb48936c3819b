"""Gate-selected neurons on the CPU: few tokens in one compiled call, and the choice for many.

Shapes: n tokens, d model, f neurons, p units.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from slms.kernels.cpu import gate_loops, loops
from slms.kernels.cpu.pointwise import CODES
from slms.kernels.cpu.rows import MEMBERS, address, as_float, contiguous, packed, run, take_part
from slms.kernels.cpu.team import team_size
from slms.kernels.gate_reference import GateCall

CHOICE = 12 << 10  # bytes that could be read while one score of a thousand is ranked: 1 µs


def gates_member(arguments):
    take_part(gate_loops.gates_loop, arguments)


def chosen_rows_member(arguments):
    take_part(gate_loops.chosen_rows_loop, arguments)


def mask_member(arguments):
    take_part(gate_loops.mask_loop, arguments)


MEMBERS[gate_loops.gates_loop] = gates_member
MEMBERS[gate_loops.chosen_rows_loop] = chosen_rows_member
MEMBERS[gate_loops.mask_loop] = mask_member


def _arguments(
    numbers: Sequence[int], addresses: Sequence[int], choice: Sequence[int], offsets: Sequence[int]
) -> np.ndarray:
    """A loop's arguments; `offsets` is empty for single neurons, whose number is the first of `choice`."""
    f, scale, k, n_shared, whole = choice
    a = packed([*numbers, 0, 0, *addresses], offsets or (0, f))
    a[loops.K], a[gate_loops.SHARED] = k, n_shared
    a[gate_loops.SCALE], a[gate_loops.WHOLE], a[gate_loops.SINGLE] = scale, whole, not offsets
    return a


def gate_rows(call: GateCall, offsets: Sequence[int]) -> Tensor:
    """The same function as `kernels.gate_mlp`, without gradients, for float32 and bfloat16, accumulated in float32.

    It reads the whole gate matrix once, and of W_in and W_out each token's chosen rows. `offsets` stand for those of
    the call, and are empty for single neurons.
    """
    n, d = call.x.shape
    # Held here, because the loops know only addresses.
    held = [contiguous(tensor) for tensor in call[:6]]
    scale, whole = contiguous(call.scale), contiguous(call.whole)
    f, p = len(call.scale), max(1, len(offsets) - 1)
    numbers = n, d, p, CODES[call.activation], call.x.element_size()
    addresses, choice = map(address, held), (f, address(scale), call.k, call.n_shared, address(whole))
    a = _arguments(numbers, [*addresses], choice, offsets)
    team = team_size(call.W_in.nbytes * 2)
    if team == 1:
        y = torch.empty(n, d, dtype=call.x.dtype)
        a[loops.Y] = y.data_ptr()
        gate_loops.gate_loop(a)
        return y
    wide, y = as_float(call.x), torch.zeros(team, n, d)
    gates, index = torch.empty(n, f), torch.empty(n, f + 1, dtype=torch.int64)
    a[loops.X], a[loops.Y], a[loops.GATES], a[gate_loops.INDEX] = map(address, (wide, y, gates, index))
    run(gate_loops.gates_loop, team, a)
    gate_loops.choose_loop(a)
    run(gate_loops.chosen_rows_loop, team, a)
    return y.sum(0).to(call.x.dtype)


def gate_choice(gate: Tensor, call: GateCall, offsets: Sequence[int]) -> Tensor:
    """Choose [n, p] bool by the gates [n, f] before their activation, float32 or bfloat16."""
    chosen = torch.empty(len(gate), len(offsets) - 1 if offsets else gate.shape[1], dtype=torch.bool)
    _mask(gate.contiguous(), call, offsets, chosen, None)
    return chosen


def multiply_chosen(up: Tensor, gate: Tensor, call: GateCall, offsets: Sequence[int]) -> None:
    """Multiply up [n, f], in place, by the activated gates of chosen units, else by 0; gate as in `gate_choice`."""
    _mask(gate.contiguous(), call, offsets, None, up)


def _mask(gate: Tensor, call: GateCall, offsets: Sequence[int], chosen: Tensor | None, up: Tensor | None) -> None:
    scale, whole = contiguous(call.scale), contiguous(call.whole)
    n, f = gate.shape
    numbers = n, 0, max(1, len(offsets) - 1), CODES[call.activation], gate.element_size()
    addresses = [address(gate), *[0] * 6, address(chosen), address(up)]
    a = _arguments(numbers, addresses, (f, address(scale), call.k, call.n_shared, address(whole)), offsets)
    run(gate_loops.mask_loop, team_size(CHOICE * n * f / 1024), a)
