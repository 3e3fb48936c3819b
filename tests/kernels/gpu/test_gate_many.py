"""Gate-selected neurons for many tokens in Triton: output and all gradients against the reference."""

import math

import pytest
import torch

from slms.kernels import ACTIVATIONS, gate_mlp_reference
from slms.kernels.gate import units_of
from slms.kernels.gpu import gate_many as many

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UNITS = {"single neurons": range(33), "equal": range(0, 65, 16), "uneven": (0, 1, 1, 20, 37, 38)}
HALF = {torch.float16: 4e-3, torch.bfloat16: 2e-2}


def there(call, dtype=torch.float32):
    tensors = [None if t is None else t.detach().to(DEVICE, dtype).requires_grad_() for t in call[:6]]
    return call._make([*tensors, *(t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in call[6:])])


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("biased", [False, True])
def test_output_and_gradients(make_gate_call, close, units, biased):
    call = there(make_gate_call(19, 33, UNITS[units], 3, 1, biased=biased, some_whole=True))
    offsets, wanted = units_of(call.offsets), gate_mlp_reference(call)
    with torch.no_grad():
        close(many.gate_many(call, offsets, False), wanted, torch.float32, "inference")
    y = many.gate_many(call, offsets, True)
    close(y, wanted, torch.float32, "training")
    leaves = [t for t in call[:6] if t is not None]
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    pairs = zip(torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(wanted, leaves, upstream), strict=True)
    for number, (one, other) in enumerate(pairs):
        close(one, other, torch.float32, f"gradient {number}")


@pytest.mark.parametrize("held", [False, True])
def test_a_second_choice(make_gate_call, close, held):
    call = there(make_gate_call(19, 33, range(33), 12, 1, some_whole=True, k_out=5, held=held))
    wanted = gate_mlp_reference(call)
    with torch.no_grad():
        close(many.gate_many(call, (), False), wanted, torch.float32, "inference")
    y = many.gate_many(call, (), True)
    close(y, wanted, torch.float32, "training")
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    leaves = list(call[:6])
    pairs = zip(torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(wanted, leaves, upstream), strict=True)
    for name, (one, other) in zip(call._fields, pairs, strict=False):
        close(one, other, torch.float32, name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes(make_gate_call, activation):
    """The gradient of the product, against float64 and finite differences where nothing is chosen by rank."""
    call = there(make_gate_call(3, 8, range(9), 8, activation=activation))
    gate, up = (torch.randn(3, 8, device=DEVICE, requires_grad=True) for _ in range(2))
    chosen = torch.rand(3, 8, device=DEVICE) < 0.5
    many.MaskedProduct.apply(gate, up, chosen, (), call.activation).sin().sum().backward()
    g, u = (t.detach().double().requires_grad_() for t in (gate, up))
    torch.where(chosen, ACTIVATIONS[activation](g) * u, 0).sin().sum().backward()
    torch.testing.assert_close(gate.grad.double(), g.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(up.grad.double(), u.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("wide", [False, True])
def test_sixteen_bits(make_gate_call, monkeypatch, dtype, wide):
    """Inference by the epilogue and, of wide models, by a pass of its own."""
    monkeypatch.setattr(many, "EPILOGUE_D", 0 if wide else 40)
    call = there(make_gate_call(17, 40, range(33), 9, some_whole=True), dtype)
    call = call._replace(scale=torch.logspace(-30, 30, 32, device=DEVICE))
    wanted = gate_mlp_reference(call._make([t.float() for t in call[:6]] + list(call[6:])))
    with torch.no_grad():
        actual = many.gate_many(call, (), False)
    torch.testing.assert_close(actual.float(), wanted, rtol=HALF[dtype], atol=HALF[dtype])


def test_all_is_written_and_nan_stays_with_its_token(make_gate_call, poison_new_tensors):
    call = there(make_gate_call(18, 24, some_whole=True))
    with torch.no_grad():
        before = many.gate_many(call, (), False)
        call.x[2, 3] = math.nan
        poison_new_tensors()
        for gradients in (False, True):
            y = many.gate_many(call, (), gradients)
            assert y[2].isnan().all() and not y[[0, 1, 3, 17]].isnan().any()
            torch.testing.assert_close(y[3:], before[3:])


@pytest.mark.parametrize("gradients", [False, True])
def test_no_token(make_gate_call, gradients):
    call = there(make_gate_call(0, 8))
    with torch.set_grad_enabled(gradients):
        assert many.gate_many(call, (), gradients).shape == (0, 8)
