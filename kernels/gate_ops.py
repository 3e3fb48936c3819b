"""Gate-selected neurons as PyTorch operators: `torch.compile(fullgraph=True)` passes through them.

`kernels::gate_choice` chooses, and `kernels::gate_keep` chooses twice, for the dense implementation, whose products
PyTorch differentiates; a choice has no gradient. `kernels::gate_rows` is the whole MLP, for inference. On CUDA all are
Triton's. Eager calls go past the operators, which cost some 30 µs. Offsets are empty for single neurons: an operator's
list of 1,537 numbers costs more than its choice.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, library

from slms.kernels.gate_reference import GateCall

CHOICE = (
    "Tensor scale, int[] offsets, SymInt k, SymInt n_shared, str activation, Tensor? whole_above=None, "
    "SymInt? k_out=None, Tensor? out_scale=None, Tensor? least=None, Tensor? least_out=None"
)
there: Any = dict(mutates_args=(), device_types=("cpu", "cuda"))


def _on(tensor: Tensor) -> ModuleType:
    """The implementation on the tensor's device, each of which needs a package of its own."""
    return importlib.import_module("slms.kernels.gpu.gate" if tensor.is_cuda else "slms.kernels.cpu.gate_rows")


def _choice(gate: Tensor, *choice: Any) -> Tensor:
    return _on(gate).gate_choice(gate, GateCall(gate, gate, None, gate, None, gate, *choice), tuple(choice[1]))


def _keep(up: Tensor, gate: Tensor, *choice: Any) -> Tensor:
    return _on(gate).gate_keep(up, gate, GateCall(gate, gate, None, gate, None, gate, *choice))


def _rows(*inputs: Any) -> Tensor:
    call = GateCall(*inputs)
    return _on(call.x).gate_rows(call, tuple(call.offsets))


GATE_CHOICE = library.custom_op("kernels::gate_choice", _choice, schema=f"(Tensor gate, {CHOICE}) -> Tensor", **there)
GATE_KEEP = library.custom_op(
    "kernels::gate_keep", _keep, schema=f"(Tensor up, Tensor gate, {CHOICE}) -> Tensor", **there
)
GATE_ROWS = library.custom_op(
    "kernels::gate_rows",
    _rows,
    schema=f"(Tensor x, Tensor W_in, Tensor? b_in, Tensor W_gate, Tensor? b_gate, Tensor W_out, {CHOICE}) -> Tensor",
    **there,
)


@GATE_CHOICE.register_fake
def _fake_choice(gate: Tensor, scale: Tensor, offsets: Sequence[int], *others: Any) -> Tensor:
    n, f = gate.shape
    return gate.new_empty((n, len(offsets) - 1 if offsets else f), dtype=torch.bool)


@GATE_KEEP.register_fake
def _fake_keep(up: Tensor, gate: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(gate, dtype=torch.bool, memory_format=torch.contiguous_format)


@GATE_ROWS.register_fake
def _fake_rows(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def choose(gate: Tensor, call: GateCall, units: tuple[int, ...]) -> Tensor:
    """Choose units [n, p] by the gates [n, f] before their activation; `units` stand for the offsets."""
    if torch.compiler.is_compiling():
        return GATE_CHOICE(gate, call.scale, units, *call[8:])
    return _on(gate).gate_choice(gate, call, units)


def keep(up: Tensor, gate: Tensor, call: GateCall) -> Tensor:
    """The neurons [n, f] that go through W_out, by up and gate [n, f] before the activation, with `k_out`."""
    if torch.compiler.is_compiling():
        return GATE_KEEP(up, gate, call.scale, (), *call[8:])
    return _on(gate).gate_keep(up, gate, call)


def by_rows(call: GateCall, units: tuple[int, ...]) -> Tensor:
    """Run the MLP by the device's `gate_rows`; `units` stand for the offsets."""
    if torch.compiler.is_compiling():
        return GATE_ROWS(*call[:7], units, *call[8:])
    return _on(call.x).gate_rows(call, units)
