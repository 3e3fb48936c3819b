"""Gate-selected neurons in Triton for few tokens: the exact choice, then the rows of what was chosen.

Two kernels choose (one, for single neurons), two more run up and down. A second choice lies between these: up, choice
and down are then four. Nothing waits for the host and grids depend only on sizes, so that CUDA graphs can hold a step.

Shapes: n tokens, d model, f neurons, p units.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from slms.kernels.backends import GPU_TOKENS
from slms.kernels.gate_reference import GateCall
from slms.kernels.gpu import sparse
from slms.kernels.gpu.choice import keep_neurons, select_units, unit_of
from slms.kernels.gpu.rows import run_rows
from slms.kernels.gpu.tiles import ACTS, arithmetic, gate_tile


def gate_choice(gate: Tensor, call: GateCall, units: tuple[int, ...]) -> Tensor:
    """Choose [n, p] bool by the gates [n, f] before their activation; `units` are empty for single neurons."""
    with torch.cuda.device_of(gate):  # Triton launches on the current device
        return select_units(gate, call, units, False)[0].view(torch.bool)


def gate_keep(up: Tensor, gate: Tensor, call: GateCall) -> Tensor:
    """The neurons [n, f] bool that go through W_out, by up and gate [n, f] before the activation, with `k_out`."""
    with torch.cuda.device_of(gate):
        chosen = select_units(gate, call, (), False)[0]
        return keep_neurons(up, gate, chosen, call)[0].view(torch.bool)


def gate_rows(call: GateCall, units: tuple[int, ...]) -> Tensor:
    """The same function as `kernels.gate_mlp`, without gradients, for up to GPU_TOKENS tokens.

    It reads the whole gate matrix, and of W_in and W_out the rows that any token chose for them.
    """
    x, W_in, W_out = (tensor.contiguous() for tensor in (call.x, call.W_in, call.W_out))
    (n, d), f = x.shape, len(W_in)
    assert n <= GPU_TOKENS, (n, GPU_TOKENS)
    if n * d * f == 0:
        return torch.zeros_like(x)
    with torch.cuda.device_of(x):
        gate = F.linear(x, call.W_gate, call.b_gate)
        listed = n == 1 and not units and call.k_out is None
        chosen, index, count = select_units(gate, call, units, listed)
        if call.k_out is not None:
            up = sparse.dots(x, W_in, chosen.view(torch.bool), call.b_in)
            kept, hidden = keep_neurons(up, gate, chosen, call)
            return sparse.sums(hidden, W_out, kept.view(torch.bool))
        tensors = {"x": x, "gate": gate, "W_in": W_in, "W_out": W_out, "chosen": chosen, "index": index, "count": count}
        if call.b_in is not None:
            tensors["b_in"] = call.b_in.contiguous()
        if units:
            tensors["unit"] = unit_of(units, x.device)
        rows = call.k if listed and call.whole_above is None and call.least is None else f
        tile = gate_tile(x.dtype, n, max(1, call.k * f // chosen.shape[1]))
        flags = {"GATE": "given", "BIASED": call.b_in is not None, "GATE_BIASED": False, "SINGLE": not units}
        flags |= {"ACT": ACTS[call.activation], "LISTED": listed, **arithmetic(x.dtype)}
        return run_rows(tensors, rows, tile, **flags)
