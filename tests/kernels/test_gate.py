"""Gate-selected neurons: every implementation against the reference, and what does not fit."""

import pytest
import torch

from slms.kernels import gate_mlp, gate_mlp_reference, gate_select


def test_every_unit_is_the_dense_mlp(make_gate_call):
    call = make_gate_call(k=12)
    gate, up = (torch.nn.functional.linear(call.x, *w) for w in ((call.W_gate, call.b_gate), (call.W_in, call.b_in)))
    dense = (torch.nn.functional.silu(gate) * up) @ call.W_out
    for some in (call, call._replace(k=1, whole=torch.ones(len(call.x), dtype=torch.bool))):
        assert gate_select(some).all()
        torch.testing.assert_close(gate_mlp(some), dense, rtol=1e-5, atol=1e-5)


def test_autocast_is_that_of_linear(make_gate_call):
    call = make_gate_call()
    with torch.autocast("cpu", torch.bfloat16):
        y = gate_mlp(call)
    assert y.dtype == torch.bfloat16
    half = call._make([*(t.bfloat16() for t in call[:6]), *call[6:]])
    torch.testing.assert_close(y, gate_mlp_reference(half), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(activation="tanh"), "`activation` is 'tanh'; it must be one of gelu"),
        (dict(offsets=(0, 5, 4, 12)), r"`offsets` is \(0, 5, 4, 12\); it must start at 0"),
        (dict(k=13), "`k` is 13 of 12 units, 0 shared; it must be between these two"),
        (dict(k=1, n_shared=2), "`k` is 1 of 12 units, 2 shared"),
        (dict(x=torch.zeros(8)), r"`x` has shape \(8,\)"),
        (dict(W_out=torch.zeros(11, 8)), r"`W_out` has shape \(11, 8\); x and offsets ask for \(12, 8\)"),
        (dict(W_in=torch.zeros(12, 8).bfloat16()), "`W_in` is torch.bfloat16; it must be of the type of x"),
        (dict(scale=torch.zeros(12).double()), "`scale` is torch.float64"),
        (dict(whole=torch.zeros(7)), "`whole` is torch.float32"),
        (dict(whole=torch.zeros(6, dtype=torch.bool)), r"`whole` has shape \(6,\)"),
        (dict(b_in=torch.zeros(12, device="meta")), "`b_in` is on meta"),
    ],
)
def test_what_does_not_fit(make_gate_call, change, message):
    call = make_gate_call()._replace(**change)
    for function in (gate_select, gate_mlp):
        with pytest.raises(ValueError, match=message):
            function(call)


def test_an_unknown_backend(make_gate_call):
    with pytest.raises(ValueError, match="`backend` is 'fast'; it must be one of auto, reference"):
        gate_mlp(make_gate_call(), "fast")
