"""The operators of gate-selected neurons are registered as PyTorch asks."""

import pytest
from torch import library

from slms.kernels import gate_ops


@pytest.mark.parametrize("offsets", [(), (0, 4, 12)])
def test_opcheck(make_gate_call, offsets):
    call = make_gate_call(some_whole=True)
    inputs = [None if tensor is None else tensor.detach() for tensor in call[:6]]
    choice = call.scale, offsets, 1, 0, "silu", call.whole_above
    library.opcheck(gate_ops.GATE_ROWS, (*inputs, *choice))
    library.opcheck(gate_ops.GATE_CHOICE, (inputs[0] @ inputs[1].t(), *choice))


@pytest.mark.parametrize("held", [False, True])
def test_opcheck_of_a_second_choice(make_gate_call, held):
    call = make_gate_call(some_whole=True, k_out=3, held=held)
    inputs = [None if tensor is None else tensor.detach() for tensor in call[:6]]
    choice = call.scale, (), *call[8:]
    library.opcheck(gate_ops.GATE_ROWS, (*inputs, *choice))
    gate = inputs[0] @ inputs[3].t()
    library.opcheck(gate_ops.GATE_KEEP, (inputs[0] @ inputs[1].t(), gate, *choice))
    library.opcheck(gate_ops.GATE_CHOICE, (gate, *choice))
