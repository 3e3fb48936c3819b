"""Gate-selected neurons: every implementation against the reference, and what does not fit."""

import itertools
import math

import pytest
import torch

from slms.kernels import ACTIVATIONS, gate_mlp, gate_mlp_reference, gate_select, mean_density
from slms.kernels.gate import units_of
from slms.kernels.gate_plan import _plan, gate_plan
from slms.kernels.gate_reference import GateCall, keep_reference, select_reference, unit_scores

UNITS = {"single neurons": range(33), "equal": range(0, 65, 8), "uneven": (0, 1, 1, 20, 37, 38)}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def detached(call, dtype=torch.float32):
    return call._make([None if t is None else t.detach().to(dtype) for t in call[:6]] + list(call[6:]))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ["dense", "rows"])
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize(("n", "d"), [(0, 8), (1, 33), (1, 64), (3, 40), (9, 5), (13, 5)])
def test_parity(make_gate_call, close, units, backend, n, d, dtype):
    """In bfloat16 near equals may be chosen otherwise, so what each chose is compared in float32 alone."""
    p = len(UNITS[units]) - 1
    flags = itertools.product((1, p // 2, p), (0, 1), (False, True), (False, True), (False, True))
    for k, n_shared, biased, some_whole, held in flags:
        made = make_gate_call(n, d, UNITS[units], k, n_shared, biased=biased, some_whole=some_whole, held=held)
        call = detached(made, dtype)
        if dtype == torch.bfloat16 and k < p:  # scores far apart, whatever the rounding
            call = call._replace(scale=torch.logspace(-30, 30, len(call.scale)))
            call = call._replace(least=torch.tensor(1e-3) if held else None)
        with torch.no_grad():
            close(gate_mlp(call, backend), gate_mlp_reference(detached(call)), dtype, f"{k} {n_shared} {biased}")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ["dense", "rows"])
@pytest.mark.parametrize(("n", "d"), [(0, 8), (1, 33), (1, 64), (3, 40), (9, 5), (13, 5)])
def test_parity_of_a_second_choice(make_gate_call, close, backend, n, d, dtype):
    flags = itertools.product((7, 40, 64), (0, 0.4, 1), (False, True), (False, True), (False, True))
    for k, share, biased, some_whole, held in flags:
        options = dict(biased=biased, some_whole=some_whole, k_out=int(share * k), held=held)
        made = make_gate_call(n, d, range(65), k, 1, **options)
        call = detached(made, dtype)
        if dtype == torch.bfloat16:  # worths far apart, whatever the rounding
            call = call._replace(scale=torch.logspace(-30, 30, 65)[:64], out_scale=torch.logspace(30, -30, 65)[:64])
            call = call._replace(least=torch.tensor(1e-9), least_out=torch.tensor(1e-9)) if held else call
        with torch.no_grad():
            close(gate_mlp(call, backend), gate_mlp_reference(detached(call)), dtype, f"{k} {share} {biased}")


def test_a_second_choice_by_hand():
    """Two of three neurons by their gates 3, 2, 1; of these the one whose activation 3·1 or 2·5 weighs more."""
    call = GateCall(
        x=torch.tensor([[1.0]]),
        W_in=torch.tensor([[1.0], [5.0], [9.0]]),
        b_in=None,
        W_gate=torch.tensor([[3.0], [2.0], [1.0]]),
        b_gate=None,
        W_out=torch.tensor([[1.0], [10.0], [100.0]]),
        scale=torch.ones(3),
        offsets=range(4),
        k=2,
        n_shared=0,
        activation="relu",
        k_out=1,
        out_scale=torch.ones(3),
    )
    for backend in ("reference", "dense", "rows"):
        assert gate_mlp(call, backend).item() == 100
        assert gate_mlp(call._replace(out_scale=torch.tensor([4.0, 1.0, 1.0])), backend).item() == 3
        assert gate_mlp(call._replace(k_out=2), backend).item() == 103


@pytest.mark.parametrize("backend", ["dense", "rows", "grouped"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(make_gate_call, close, activation, backend):
    call = detached(make_gate_call(d=32, offsets=range(65), k=20, activation=activation))
    close(gate_mlp(call, backend), gate_mlp_reference(call), torch.float32, "output")


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("backend", ["auto", "dense", "grouped"])
def test_gradients(make_gate_call, close, units, backend):
    call = make_gate_call(9, 16, UNITS[units], 3, 1, some_whole=True)
    upstream = torch.randn(9, 16, generator=torch.Generator().manual_seed(1))
    calls = [call]
    if backend != "grouped" and units == "single neurons":
        calls += [make_gate_call(9, 16, UNITS[units], 12, 1, some_whole=True, k_out=5, held=h) for h in (False, True)]
    for call in calls:
        leaves = list(call[:6])
        actual = torch.autograd.grad(gate_mlp(call, backend), leaves, upstream)
        wanted = torch.autograd.grad(gate_mlp_reference(call), leaves, upstream)
        for name, one, other in zip(call._fields, actual, wanted, strict=False):
            close(one, other, torch.float32, name)


@pytest.mark.parametrize("n_shared", [0, 2])
@pytest.mark.parametrize("units", UNITS)
def test_the_choice_of_equals_zeros_infinity_and_nan(make_gate_call, units, n_shared):
    """Gates of a few values have many equal scores."""
    p = len(UNITS[units]) - 1
    call = detached(make_gate_call(40, 6, UNITS[units], activation="relu", biased=False, n_shared=n_shared))
    generator = torch.Generator().manual_seed(0)
    pick = torch.tensor([0.0, 1.0, 2.0, -1.0, 1e-40, math.inf, math.nan])
    f = len(call.scale)
    gate = pick[torch.randint(0, 7, (40, f), generator=generator)]
    gate[:20] = gate[:20].nan_to_num(1.0, 1.0)
    call = call._replace(
        x=gate, W_gate=torch.eye(f), W_in=torch.zeros(f, f), W_out=torch.zeros(f, f), scale=torch.ones(f)
    )
    call = call._replace(x=torch.where(gate.isfinite(), gate, 3.0))
    for k in {n_shared, max(n_shared, p // 3), p}:
        scores = unit_scores(call.x.relu(), call.scale, call.offsets)
        wanted = select_reference(scores, k, n_shared)
        assert torch.equal(gate_select(call._replace(k=k)), wanted)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("n", [1, 3, 13])
def test_rows_not_chosen_are_never_read(make_gate_call, units, n):
    call = detached(make_gate_call(n, 40, UNITS[units], 2))
    call.x[1:] = call.x[0] * torch.rand(n - 1, 1)  # many tokens that leave out the same rows
    sizes = torch.tensor(UNITS[units]).diff()
    skipped = ~gate_select(call).any(0).repeat_interleave(sizes)
    assert skipped.any()
    before = gate_mlp(call, "rows")
    for tensor in (call.W_in, call.b_in, call.W_out):
        tensor[skipped] = math.nan
    assert torch.equal(gate_mlp(call, "rows"), before)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("n", [1, 3, 13])
def test_rows_that_a_second_choice_drops_are_never_read(make_gate_call, n, held):
    call = detached(make_gate_call(n, 40, range(65), 20, k_out=8, held=held))
    chosen = gate_select(call)
    gate, up = (torch.nn.functional.linear(call.x, *w) for w in ((call.W_gate, call.b_gate), (call.W_in, call.b_in)))
    kept = keep_reference(torch.nn.functional.silu(gate) * up, chosen, call)
    assert kept.sum() == 8 * n and (held or kept.sum(1).tolist() == [8] * n)
    before = gate_mlp(call, "rows")
    for tensor, needed in ((call.W_in, chosen), (call.b_in, chosen), (call.W_out, kept)):
        assert not needed.any(0).all()
        tensor[~needed.any(0)] = math.nan
    assert torch.equal(gate_mlp(call, "rows"), before)


@pytest.mark.parametrize("backend", ["dense", "rows"])
def test_nan_propagates_to_its_token_alone(make_gate_call, backend):
    call = detached(make_gate_call(5))
    call.x[2, 3] = math.nan
    y = gate_mlp(call, backend)
    assert y[2].isnan().all() and not y[[0, 1, 3, 4]].isnan().any()


@pytest.mark.parametrize("backend", ["dense", "rows"])
def test_strided_inputs(make_gate_call, backend):
    call = detached(make_gate_call(3, some_whole=True))
    turned = call._make(
        [t.t().contiguous().t() if t.dim() == 2 else torch.stack([t, t], 1)[:, 0] for t in call[:7]] + list(call[7:])
    )
    torch.testing.assert_close(gate_mlp(turned, backend), gate_mlp(call, backend))


def test_auto_says_what_it_picks(make_gate_call, caplog):
    caplog.set_level("INFO", "slms.kernels.gate_plan")
    _plan.cache_clear()
    call = detached(make_gate_call(5, k=12))
    gate_mlp(call)
    assert (
        "dense for up to 8 gate-selected tokens at density 1.00: tokens that choose apart need nearly all"
        in caplog.text
    )
    for n, density in ((8, 0.6), (9, 0.5), (32, 0.5), (33, 0.4), (100_000, 0.4)):
        assert gate_plan(n, density, False, "cpu", torch.float32)[0] == "rows", n
        assert gate_plan(n, density + 0.01, False, "cpu", torch.float32)[0] == "dense", n
    assert "rows for more than 32 gate-selected tokens at density 0.40" in caplog.text
    assert "fast in float32 alone" in gate_plan(9, 0.1, False, "cpu", torch.bfloat16)[1]
    assert mean_density(3, None, 10) == 0.3 and mean_density(3, 2, 10) == 0.25
    assert gate_plan(1, 1.0, False, "cpu", torch.bfloat16)[0] == "rows"
    assert gate_plan(1, 0.5, True, "cpu", torch.float32) == ("dense", "rows has no gradient")
    assert gate_plan(1, 0.5, False, "cpu", torch.float64)[0] == "dense"


def test_offsets_are_walked_once():
    offsets = tuple(range(0, 9, 4))
    assert units_of(offsets) is units_of(offsets) == offsets
    assert units_of(tuple(range(9))) == units_of(range(9)) == units_of([0, 1, 2]) == ()


@pytest.mark.parametrize("n", [1, 9, 13])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("units", ["single neurons", "uneven"])
@pytest.mark.parametrize(("k_out", "held"), [(None, False), (2, False), (2, True)])
def test_compiles_as_one_graph(make_gate_call, units, gradients, n, k_out, held):
    if k_out is not None and units == "uneven":
        pytest.skip("a second choice is of single neurons")
    torch._dynamo.reset()
    call = make_gate_call(n, 16, tuple(UNITS[units]), 3, 1, k_out=k_out, held=held)
    compiled = torch.compile(lambda x: gate_mlp(call._replace(x=x)).sin(), fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(compiled(call.x), gate_mlp_reference(call).sin(), rtol=1e-5, atol=1e-5)
        if gradients:
            one, other = (
                torch.autograd.grad(y.sum(), call.x)[0] for y in (compiled(call.x), gate_mlp_reference(call).sin())
            )
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_every_unit_is_the_dense_mlp(make_gate_call):
    call = make_gate_call(k=12)
    gate, up = (torch.nn.functional.linear(call.x, *w) for w in ((call.W_gate, call.b_gate), (call.W_in, call.b_in)))
    dense = (torch.nn.functional.silu(gate) * up) @ call.W_out
    for some in (call, call._replace(k=1, whole_above=torch.tensor(0.0))):
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
        (dict(whole_above=torch.tensor(1.0).double()), r"`whole_above` is torch\.float64"),
        (dict(whole_above=torch.zeros(7)), r"`whole_above` has shape \(7,\)"),
        (dict(b_in=torch.zeros(12, device="meta")), "`b_in` is on meta"),
        (dict(k_out=3), "`k_out` is 3; it needs `out_scale`"),
        (dict(least_out=torch.tensor(1.0)), "`least_out` is needed where `least` and `k_out` are given"),
        (dict(least=torch.ones(2)), r"`least` has shape \(2,\)"),
        (dict(k_out=7, out_scale=torch.ones(12)), r"`k_out` is 7; it must be from 0 to `k` \(6\)"),
        (dict(k_out=1, out_scale=torch.ones(12), offsets=(0, 2, 12), k=2), "the units single neurons"),
        (dict(k_out=3, out_scale=torch.ones(12).double()), "`out_scale` is torch.float64"),
    ],
)
def test_what_does_not_fit(make_gate_call, change, message):
    call = make_gate_call()._replace(**change)
    for function in (gate_select, gate_mlp):
        with pytest.raises(ValueError, match=message):
            function(call)


def test_an_unknown_backend(make_gate_call):
    with pytest.raises(ValueError, match="`backend` is 'fast'; it must be one of auto, reference, dense, rows, gr"):
        gate_mlp(make_gate_call(), "fast")


def test_rows_gives_no_gradient(make_gate_call):
    with pytest.raises(
        ValueError, match=r"`backend` is 'rows', and an input needs a gradient; rows has a gradient only (on|for)"
    ):
        gate_mlp(make_gate_call(), "rows")
    with pytest.raises(
        ValueError, match=r"`backend` is 'rows'; it knows float32 and bfloat16, and x is torch\.float64"
    ):
        gate_mlp(detached(make_gate_call(), torch.float64), "rows")
