"""The specification against loops over its definition, and its gradients against finite differences."""

import pytest
import torch

from slms.kernels import ACTIVATIONS


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_definition(make_case, activation, gated):
    case = make_case(n=3, d=5, offsets=(0, 2, 2, 7), activation=activation, gated=gated, dtype=torch.float64)
    act = {
        "gelu": lambda a: a * 0.5 * (1 + torch.erf(a / 2**0.5)),
        "gelu_new": lambda a: 0.5 * a * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (a + 0.044715 * a**3))),
        "gelu_pytorch_tanh": lambda a: 0.5 * a * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (a + 0.044715 * a**3))),
        "relu": lambda a: a.clamp(min=0),
        "silu": lambda a: a / (1 + torch.exp(-a)),
    }[activation]
    expected = torch.zeros_like(case.x)
    for t in range(3):
        for p in range(3):
            if not case.chosen[t, p]:
                continue
            for f in range(case.offsets[p], case.offsets[p + 1]):
                up = case.W_in[f] @ case.x[t] + case.b_in[f]
                hidden = act(case.W_gate[f] @ case.x[t] + case.b_gate[f]) * up if gated else act(up)
                expected[t] += case.gates[t, p] * hidden * case.W_out[f]
    torch.testing.assert_close(case.reference(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_gradients(make_case, gated):
    case = make_case(n=2, d=3, offsets=(0, 2, 5), gated=gated, dtype=torch.float64)

    def output(*leaves):
        values = iter(leaves)
        return case._replace(**{name: next(values) for name in case.tensor_names() if name != "chosen"}).reference()

    assert torch.autograd.gradcheck(output, case.leaves)


def test_activation_backward():
    a = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_()
    upstream = torch.linspace(1, 2, 13, dtype=torch.float64)
    for name, activation in ACTIVATIONS.items():
        expected = torch.autograd.grad(activation(a), a, upstream)[0]
        torch.testing.assert_close(activation.backward(upstream, a.detach()), expected, msg=name)
