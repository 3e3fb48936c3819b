"""The specification of gate-selected neurons against its definition, one token and one neuron at a time."""

import math

import pytest
import torch

from slms.kernels import gate_mlp_reference, gate_select
from slms.kernels.gate_reference import select_reference


def one_by_one(call):
    """Choice and output from the definition, in Python's numbers; relu or silu."""
    act = {"silu": lambda a: a / (1 + math.exp(-a)), "relu": lambda a: max(a, 0.0)}[call.activation]
    n, p, f = len(call.x), len(call.offsets) - 1, call.offsets[-1]
    chosen, y = torch.zeros(n, p, dtype=torch.bool), torch.zeros(call.x.shape, dtype=torch.float64)
    for t in range(n):
        x = call.x[t].double()
        gate = [(x @ call.W_gate[i].double()).item() + call.b_gate[i].item() for i in range(f)]
        c = [abs(act(gate[i])) * call.scale[i].item() for i in range(f)]
        score = [math.sqrt(sum(c[i] ** 2 for i in range(*call.offsets[q : q + 2]))) for q in range(p)]
        best = sorted(range(call.n_shared, p), key=lambda q: (-score[q], q))[: call.k - call.n_shared]
        chosen[t, [*range(call.n_shared), *best]] = True
        chosen[t] |= call.whole_above is not None and math.hypot(*c) > call.whole_above
        for q in range(p):
            for i in range(*call.offsets[q : q + 2]) if chosen[t, q] else ():
                u = x @ call.W_in[i].double() + call.b_in[i].double()
                y[t] += act(gate[i]) * u * call.W_out[i].double()
    return chosen, y


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("offsets", [tuple(range(13)), (0, 4, 8, 12), (0, 1, 1, 7, 12)])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("n_shared", [0, 1])
@pytest.mark.parametrize("some_whole", [False, True])
def test_the_definition(make_gate_call, activation, offsets, k, n_shared, some_whole):
    call = make_gate_call(offsets=offsets, k=k, n_shared=n_shared, activation=activation, some_whole=some_whole)
    chosen, y = one_by_one(call)
    assert torch.equal(gate_select(call), chosen)
    torch.testing.assert_close(gate_mlp_reference(call).double(), y, rtol=1e-5, atol=1e-5)


def test_the_left_of_equals_and_nan_first():
    nan = math.nan
    scores = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0], [5.0, 1.0, nan, 9.0, math.inf]])
    wanted = [[1, 1, 0, 1, 0], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert select_reference(scores, 3, 0).int().tolist() == wanted
    assert select_reference(scores, 2, 1).int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]]
