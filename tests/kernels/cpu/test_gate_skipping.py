"""A training step by chosen rows gives the definition's outputs, gradients and counts, to its type's rounding."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from slms.kernels import ACTIVATIONS, gate_mlp, gate_mlp_counted, gate_plan
from slms.kernels.backends import pair_products
from slms.kernels.costs import narrow
from slms.kernels.gate_plan import step_plan, step_refusal
from slms.kernels.gate_reference import GateCall, choose_reference, keep_reference, unit_scores

pytestmark = pytest.mark.skipif(narrow(), reason="this CPU has no AVX-512")
no_pairs = pytest.mark.skipif(not pair_products(), reason="this CPU has no AVX512_BF16, or has AMX")
TYPES = [torch.float32, pytest.param(torch.bfloat16, marks=no_pairs)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def in_a_gap(values, count):
    """A number that about `count` of the values reach, far from its neighbours: rounding decides nothing."""
    ordered = values.flatten().sort(descending=True).values
    near = ordered[max(count - len(ordered) // 20, 0) : count + len(ordered) // 20 + 2].clamp(min=1e-6)
    i = (near[:-1] / near[1:]).argmax()
    return (near[i] * near[i + 1]).sqrt().float()


@dataclasses.dataclass
class Case:
    call: GateCall
    chosen: torch.Tensor
    kept: torch.Tensor

    def __init__(
        self,
        n=150,
        d=96,
        f=70,
        k=28,
        k_out=None,
        held=True,
        activation="silu",
        whole=False,
        n_shared=0,
        dtype=torch.float32,
    ):
        """Gates and ups are exact in bfloat16, so that rounding decides no choice."""
        torch.manual_seed(0)

        def numbers(*size, values=(-1.0, 0.0, 1.0)):
            return torch.tensor(values, dtype=torch.bfloat16)[torch.randint(len(values), size)]

        often = torch.tensor([0.25, 0.25, 0.125, 0.0625])[torch.arange(f) % 4, None]  # some are chosen by most tokens
        W_gate = numbers(f, d) * often.bfloat16()
        x, W_in, W_out = numbers(n, d), numbers(f, d), (torch.randn(f, d) * f**-0.5).bfloat16()
        x, W_in, W_gate, W_out = (tensor.to(dtype).requires_grad_() for tensor in (x, W_in, W_gate, W_out))
        leaves = x, W_in, None, W_gate, None, W_out
        scale, out_scale = torch.rand(f) + 0.5, torch.rand(f) + 0.5
        call = GateCall(*leaves, scale, range(f + 1), k, n_shared, activation, None, k_out, None)
        call = call._replace(out_scale=None if k_out is None else out_scale)
        with torch.no_grad():
            a = ACTIVATIONS[activation](F.linear(call.x, W_gate).double())
            scores = unit_scores(a, scale, call.offsets)
            if held:
                call = call._replace(least=in_a_gap(scores, n * k))
            if whole:
                call = call._replace(whole_above=in_a_gap(scores.norm(dim=1), n // 6))
            self.chosen = choose_reference(scores, call)
            h = a * F.linear(call.x.double(), call.W_in.double())
            if held and k_out is not None:
                call = call._replace(least_out=in_a_gap((h.abs() * out_scale)[self.chosen], n * k_out))
            self.kept = keep_reference(h, self.chosen, call)
        self.call = call

    def expected(self, upstream):
        """Output and gradients in float64 for this choice."""
        x, W_in, _, W_gate, _, W_out = (None if t is None else t.detach().double() for t in self.call[:6])
        leaves = [t.requires_grad_() for t in (x, W_in, W_gate, W_out)]
        h = ACTIVATIONS[self.call.activation](F.linear(x, W_gate)) * F.linear(x, W_in)
        y = torch.where(self.kept, h, 0) @ W_out
        return y, torch.autograd.grad(y, leaves, upstream.double())


def leaves_of(call):
    return call.x, call.W_in, call.W_gate, call.W_out


def check(case, many, monkeypatch):
    from slms.kernels.cpu import gate_skipping

    monkeypatch.setattr(gate_skipping, "MANY", many)
    y, counts = gate_mlp_counted(case.call)
    assert type(y.grad_fn).__name__ == "ChosenRowsBackward" and y.dtype == case.call.x.dtype
    assert counts.tolist() == [int(case.chosen.sum()), int(case.kept.sum()), case.chosen.numel()]
    upstream = torch.randn(y.shape).to(y.dtype)
    wanted, gradients = case.expected(upstream)
    found = torch.autograd.grad(y, leaves_of(case.call), upstream)
    for name, ours, exact in zip(("y", "x", "W_in", "W_gate", "W_out"), (y, *found), (wanted, *gradients), strict=True):
        error = (ours.double() - exact).norm() / exact.norm()
        assert error < TOLERANCE[y.dtype], (name, error)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("many", [0.0, 0.5, 1.1], ids=["library", "both", "loops"])
@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_gradients_and_counts(many, threads, dtype, monkeypatch):
    from slms.kernels.cpu import team

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    monkeypatch.setattr(team, "TEAM_BYTES", 0)
    try:
        seen = set()
        for activation, whole, n_shared in itertools.product(ACTIVATIONS, (False, True), (0, 3)):
            for k_out, held in ((None, True), (14, True), (14, False), (None, False)):
                options = dict(activation=activation, whole=whole, n_shared=n_shared, k_out=k_out, held=held)
                case = Case(**options, dtype=dtype)
                check(case, many, monkeypatch)
                seen |= {bool(all_of_them) for all_of_them in case.chosen.all(1)}
        assert seen == {False, True}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("n", "d", "f"), [(600, 32, 40), (64, 64, 500), (130, 192, 33), (129, 160, 700)])
def test_sizes(n, d, f, dtype, monkeypatch):
    check(Case(n=n, d=d, f=f, k=f // 3, k_out=f // 5, dtype=dtype), 0.5, monkeypatch)


@no_pairs
def test_under_autocast_gradients_have_the_weights_type():
    case = Case(k_out=14, dtype=torch.bfloat16)
    given = [t if t is None else t.detach().float().requires_grad_() for t in case.call[:6]]
    call = case.call._make([*given, *case.call[6:]])
    with torch.autocast("cpu", torch.bfloat16):
        y, counts = gate_mlp_counted(call)
        again = gate_mlp(call)
    plain, others = gate_mlp_counted(case.call)
    assert torch.equal(y, plain) and torch.equal(y, again) and counts.equal(others)
    found, others = (torch.autograd.grad(out.sum(), leaves_of(of)) for out, of in ((y, call), (plain, case.call)))
    for ours, theirs in zip(found, others, strict=True):
        assert ours.dtype == torch.float32 and theirs.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs.float(), rtol=4e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "needs", [(True, False, False, False), (False, True, False, True), (False, False, False, False)]
)
def test_what_needs_no_gradient_gets_none(needs, dtype):
    case = Case(dtype=dtype)
    for leaf, wanted in zip(leaves_of(case.call), needs, strict=True):
        leaf.requires_grad_(wanted)
    y, _ = gate_mlp_counted(case.call)
    assert y.requires_grad == any(needs)
    if any(needs):
        y.sum().backward()
    assert [leaf.grad is not None for leaf in leaves_of(case.call)] == list(needs)


@pytest.mark.parametrize("dtype", TYPES)
def test_no_tokens_no_neurons_and_nan(dtype):
    case = Case(k_out=14, dtype=dtype)
    none = case.call._replace(x=case.call.x[:0])
    from slms.kernels.gate_train import chosen_rows

    y, counts = chosen_rows(none)
    y.sum().backward()
    assert y.shape == (0, 96) and counts.tolist() == [0, 0, 0] and not case.call.W_in.grad.any()
    y, counts = gate_mlp_counted(case.call._replace(least=torch.tensor(math.inf)))
    assert not y.any() and counts.tolist() == [0, 0, 150 * 70]
    x = case.call.x.detach().clone()
    x[2, 3] = math.nan
    y, _ = gate_mlp_counted(case.call._replace(x=x.requires_grad_()))
    others = torch.arange(150) != 2
    assert y[2].isnan().all() and not y[others].isnan().any()
    assert not torch.autograd.grad(y[others].sum(), x)[0][others].isnan().any()


def test_a_second_derivative_is_refused():
    call = Case().call
    y, _ = gate_mlp_counted(call)
    (first,) = torch.autograd.grad(y.square().sum(), call.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_of_equal_neurons_the_left_one_stays():
    """Also where the left one is among the many, which are listed behind the others."""
    call = Case(k_out=9, held=False, n_shared=10).call._replace(scale=torch.ones(70), out_scale=torch.ones(70))
    with torch.no_grad():
        call.W_in[35:], call.W_gate[35:] = call.W_in[:35], call.W_gate[:35]
    found, wanted = (
        torch.autograd.grad(gate_mlp(call, backend).sum(), leaves_of(call)) for backend in ("rows", "reference")
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "rows"])
@pytest.mark.parametrize("shape", [(), (96,), (1, 5, 96)])
def test_tokens_of_another_shape_are_refused(backend, shape):
    with pytest.raises(ValueError, match=r"`x` has shape .*; it must be tokens × d_model"):
        gate_mlp(Case().call._replace(x=torch.zeros(shape, requires_grad=True)), backend)


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_that_no_token_chose_are_not_read(dtype):
    case = Case(dtype=dtype)
    with torch.no_grad():
        case.call.W_gate[[5, 40]] = 0  # their gates are 0, below every threshold
        for matrix in (case.call.W_in, case.call.W_out):
            matrix[[5, 40]] = math.nan
    y, _ = gate_mlp_counted(case.call)
    gradients = torch.autograd.grad(y.float().square().sum(), leaves_of(case.call))
    assert y.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)
    assert not any(gradient[[5, 40]].any() for gradient in gradients[1:])


def test_when_it_is_picked(monkeypatch):
    call = Case().call
    assert step_refusal(call, True) is None and step_plan(call, True)[0] == "rows"
    assert "fewer than 64 tokens" in step_plan(call._replace(x=call.x[:63]), True)[1]
    assert "nearly all rows" in step_plan(call._replace(k=36), True)[1]
    assert step_plan(call._replace(k=43, k_out=27, out_scale=call.scale), True)[0] == "rows"
    assert "only for single neurons without biases" in step_refusal(call, False)
    assert "only for single neurons without biases" in step_refusal(call._replace(b_in=call.scale), True)
    assert "that 32 divides" in step_refusal(call._replace(x=call.x[:, :40]), True)
    double = call._make([t if t is None else t.double() for t in call[:6]] + list(call[6:]))
    assert "only on a CPU with AVX-512, in float32" in step_refusal(double, True)
    assert "only on a CPU" in step_refusal(call._replace(x=call.x.bfloat16()), True)  # and not its weights
    with torch.autocast("cpu", torch.float16):
        assert "only on a CPU" in step_refusal(call, True)
    with torch.autocast("cpu", torch.bfloat16):
        assert (step_refusal(call, True) is None) == pair_products()
    monkeypatch.setattr(gate_plan, "narrow", lambda: True)
    assert "only on a CPU" in step_refusal(call, True)
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match="`backend` is 'rows', and an input needs a gradient; rows has a gradient only"
    ):
        gate_mlp(double, "rows")
    few = call._replace(x=call.x[:20])
    rows, dense = gate_mlp(few, "rows"), gate_mlp(few, "dense")
    assert type(rows.grad_fn).__name__ == "ChosenRowsBackward" and (rows - dense).norm() < 0.01 * dense.norm()
