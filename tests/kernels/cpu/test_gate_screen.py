"""A token that is screened by the copy in eight bits gets the same output, and reads no gate that cannot matter."""

import pytest
import torch

from slms.kernels import GateCall, gate_mlp_reference, gate_select, prepare_gate
from slms.kernels.activations import ACTIVATIONS
from slms.kernels.cpu.gate_screen import AT, MOST, PEAK, SIGMAS, copy_in_bytes
from slms.kernels.cpu.pointwise import CODES


def made(f, d, density, seed=0, activation="silu", bias=True, k_out=None, shared=0, heavy=False, whole=None):
    """A call of 40 tokens whose thresholds choose a share of single neurons on average."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    x = draw(40, d) * (draw(40, d).abs() ** 4 if heavy else 1)
    W_in, W_gate, W_out = (draw(f, d) / d**0.5 for _ in range(3))
    b_in, b_gate = (draw(f) / 3, draw(f) / 3) if bias else (None, None)
    gate = ACTIVATIONS[activation](torch.nn.functional.linear(x, W_gate, b_gate))
    scale, out_scale = draw(f).abs() + 0.1, draw(f).abs() + 0.1
    worth = (gate * torch.nn.functional.linear(x, W_in, b_in)).abs() * out_scale
    least, least_out = (gate.abs() * scale).quantile(1 - density), worth.quantile(1 - density / 2)
    again = (k_out, out_scale) if k_out else (None, None)
    call = (x, W_in, b_in, W_gate, b_gate, W_out, scale, range(f + 1), max(1, round(f * density)), shared, activation)
    above = None if whole is None else torch.tensor(whole)
    return GateCall(*call, above, *again, least, least_out if k_out else None)


@pytest.mark.parametrize("activation", CODES)
@pytest.mark.parametrize("k_out", [None, 9])
@pytest.mark.parametrize(("f", "d", "bias", "shared", "heavy"), [(96, 64, True, 0, False), (131, 40, False, 3, True)])
def test_a_screened_token_gets_the_same(f, d, bias, shared, heavy, k_out, activation):
    call = made(f, d, 0.3, 1, activation, bias, k_out, shared, heavy)
    plain, run = prepare_gate(call), prepare_gate(call, screened=True)
    assert plain.copy is None and run.copy is not None
    for t in range(40):
        one = call._replace(x=call.x[t : t + 1])
        expected, largest = plain(one.x), plain(one.x).abs().max().item()
        torch.testing.assert_close(run(one.x), expected, rtol=0, atol=2e-6 * largest)
        torch.testing.assert_close(run(one.x), gate_mlp_reference(one), rtol=0, atol=2e-5 * largest)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.6])
def test_rows_that_cannot_be_chosen_are_not_read(density):
    """What is far below its threshold is poisoned behind the copy; what is chosen is computed from the matrix."""
    call = made(256, 128, density, bias=False)
    run, one = prepare_gate(call, screened=True), call._replace(x=call.x[:1])
    expected, chosen = run(one.x), gate_select(one)[0]
    scores = torch.nn.functional.silu(one.x @ call.W_gate.T)[0].abs() * call.scale
    far = scores < call.least / 2
    assert not (far & chosen).any() and far.sum() > 20
    for W in (call.W_gate, call.W_in, call.W_out):
        W[far] = float("nan")
    assert torch.equal(run(one.x), expected)
    assert not prepare_gate(call, screened=False)(one.x).isfinite().all()


def test_a_matrix_that_left_its_copy_is_read_whole():
    call = made(256, 128, 0.3, k_out=20)
    run = prepare_gate(call, screened=True)
    call.W_gate.copy_(call.W_gate.flip(0))
    one = call._replace(x=call.x[:1])
    torch.testing.assert_close(run(one.x), gate_mlp_reference(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 0.0])
def test_extreme_tokens(value):
    call = made(96, 64, 0.3)
    x = call.x[:1].clone()
    x[0, 3] = value
    x = x * 0 if value == 0 else x
    plain, run = prepare_gate(call), prepare_gate(call, screened=True)
    torch.testing.assert_close(run(x), plain(x), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_a_token_that_may_be_whole_is_computed_whole(share):
    call = made(96, 64, 0.3, bias=False)
    norm = (torch.nn.functional.silu(call.x[:1] @ call.W_gate.T).abs() * call.scale).norm()
    call = call._replace(whole_above=norm * share)
    one = call._replace(x=call.x[:1])
    torch.testing.assert_close(prepare_gate(call, True)(one.x), gate_mlp_reference(one), rtol=1e-4, atol=1e-5)
    assert gate_select(one).all() == (share < 1)


def test_a_token_that_chose_all_keeps_all():
    call = made(8, 64, 0.5, bias=False, k_out=2)._replace(least=torch.tensor(0.0))
    one = call._replace(x=call.x[:1])
    assert gate_select(one).all()
    torch.testing.assert_close(prepare_gate(call, True)(one.x), gate_mlp_reference(one), rtol=1e-4, atol=1e-5)


def test_what_has_no_copy():
    call = made(96, 64, 0.3)
    assert prepare_gate(call._replace(least=None), True).copy is None
    half = call._replace(
        **{name: getattr(call, name).bfloat16() for name in ("x", "W_in", "b_in", "W_gate", "b_gate", "W_out")}
    )
    assert prepare_gate(half, True).copy is None
    call.W_gate[0, 0] = float("inf")
    assert prepare_gate(call, True).copy is None


def test_errors_stay_within_six_sigmas():
    """Of ten million products, heavy-tailed tokens among them, none errs by more than the margin, and some by 4 σ."""
    g = torch.Generator().manual_seed(0)
    W, most = torch.randn(2000, 96, generator=g).double(), 0.0
    copy = copy_in_bytes(W)
    codes, step = copy.codes[:2000, :96].double(), copy.step.double()
    assert codes.abs().max() == MOST
    for power in (1, 3, 9):
        x = torch.randn(1700, 96, generator=g).double() ** power
        x = x / x.norm(dim=1, keepdim=True)
        wrong = (x @ (codes * step[:, None] - W.float().double()).T).abs() / (step / 12**0.5)
        most = max(most, wrong.max().item())
    assert 4 < most < SIGMAS


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "silu"])
def test_the_peaks_are_where_and_as_high_as_said(activation):
    x = torch.linspace(-4, 0, 400_001, dtype=torch.float64)
    height, where = ACTIVATIONS[activation](x).abs().max(0)
    at, peak = AT[CODES[activation]], PEAK[CODES[activation]]
    assert abs(x[where].item() - at) < 2e-5 and 0 <= peak - height.item() < 1e-6
