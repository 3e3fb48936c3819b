"""The Triton kernels against the reference on a CUDA device, else in Triton's interpreter (see tests/conftest.py)."""

import pytest
import torch
from torch import library

from slms.kernels import ACTIVATIONS, backends, ops
from slms.kernels.gpu import gradients, grouped, launch, problem, tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(case):
    moved = (t.detach().to(DEVICE).requires_grad_(t.requires_grad) for t in case.tensors())
    return case._replace(**dict(zip(case.tensor_names(), moved, strict=True)))


@pytest.mark.parametrize("n", [1, 3, 20])  # one token, a few, grouped
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_parity(make_case, check_case, activation, gated, n):
    assert activation in ACTIVATIONS
    case = make_case(n=n, d=16, offsets=(0, 16, 32), activation=activation, gated=gated, biased=activation != "silu")
    check_case(on_device(case), "triton")


@pytest.mark.parametrize("n", [1, 3, 20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half(make_case, check_case, dtype, n):
    case = make_case(n=n, d=32, offsets=(0, 16, 32, 64), gated=True, dtype=dtype)
    gates = case.gates.detach().float().requires_grad_()
    check_case(on_device(case._replace(gates=gates)), "triton")


@pytest.mark.parametrize("n", [2, 18])
@pytest.mark.parametrize(
    "edge",
    [
        dict(density=0.0),
        dict(density=1.1),
        dict(offsets=(0, 5)),
        dict(offsets=(0, 5, 5, 13)),
        dict(offsets=(0, 0)),
        dict(d=3, offsets=(0, 3, 7)),
        dict(d=70, offsets=(0, 37, 140)),
    ],
    ids=lambda edge: " ".join(f"{key}={value}" for key, value in edge.items()),
)
def test_edges(make_case, check_case, edge, n):
    check_case(on_device(make_case(n=n, gated=True, **edge)), "triton")


def test_zero_tokens(make_case, check_case):
    check_case(on_device(make_case(n=0)), "triton")


@pytest.mark.parametrize("size", ["large", "small", "odd"])
def test_every_size_of_tiles(make_case, check_case, monkeypatch, size):
    """Those for many tokens too, at a size that the interpreter can bear."""
    monkeypatch.setattr(problem, "tiles_for", lambda dtype, n, odd: tiles.TILES[tiles.family(dtype), size])
    check_case(on_device(make_case(n=70, d=40, offsets=(0, 70, 100), gated=True)), "triton")


@pytest.mark.parametrize(("programs", "gated"), [(1, True), (3, False), (3, True), (500, True)])
def test_persistent_programs(make_case, check_case, monkeypatch, programs, gated):
    """Any number of programs do all tiles: two pathways of several tiles with several columns, one of none."""
    monkeypatch.setattr(launch, "places", lambda device, resident: programs)
    case = make_case(n=50, d=80, offsets=(0, 80, 160, 176), gated=gated)
    chosen = case.chosen.clone()
    chosen[:, 1] = False
    chosen[5:, 2] = True
    check_case(on_device(case._replace(chosen=chosen)), "triton")


@pytest.mark.parametrize("n", [1, 4, 20])
def test_skipped_weights_are_never_read(make_case, n):
    case = make_case(n=n, d=16, offsets=(0, 16, 32, 48), gated=True)
    chosen = case.chosen.clone()
    chosen[:, 0], chosen[:, 1] = True, False
    case = on_device(case._replace(chosen=chosen))

    def outcome():
        output = case.run("triton")
        return [output, *torch.autograd.grad(output, case.leaves, torch.ones_like(output))]

    clean = outcome()
    with torch.no_grad():
        for weight in (case.W_in, case.b_in, case.W_gate, case.b_gate, case.W_out):
            weight[16:32] = float("nan")
    assert all(torch.equal(before, after) for before, after in zip(clean, outcome(), strict=True))


def test_every_element_is_written(make_case, poison_new_tensors):
    """Buffers that begin as NaN leave no trace."""
    case = on_device(make_case(n=20, d=16, offsets=(0, 5, 5, 20), gated=True))
    upstream = torch.ones_like(case.x)
    clean = torch.autograd.grad(case.run("triton"), case.leaves, upstream)

    poison_new_tensors()
    output = case.run("triton")
    grads = torch.autograd.grad(output, case.leaves, upstream)
    assert not output.isnan().any()
    assert all(torch.equal(a, b) for a, b in zip(clean, grads, strict=True))


def test_room_for_as_many_pathways_as_a_token_takes_at_most(make_case, monkeypatch):
    """The same numbers from less memory; NaN, and nothing out of bounds, where the promise is broken."""
    case = on_device(make_case(n=40, d=16, offsets=tuple(range(0, 97, 16)), gated=True))
    rank = torch.rand(40, 6, generator=torch.Generator().manual_seed(3)).argsort(1).to(DEVICE)
    case = case._replace(chosen=rank < 2)
    rooms = []
    find = launch.find_routes
    monkeypatch.setattr(launch, "find_routes", lambda *given: rooms.append(given[2]) or find(*given))

    def outcome(most):
        output = case._replace(most=most).run("triton")
        return [output, *torch.autograd.grad(output, case.leaves, torch.ones_like(output))]

    assert all(torch.equal(a, b) for a, b in zip(outcome(None), outcome(2), strict=True))
    assert rooms == [240, 80]
    broken = outcome(1)[0]
    first, seen = case.chosen.t().nonzero(as_tuple=True)[1], outcome(2)[0]
    lost = torch.zeros(40, dtype=torch.bool, device=DEVICE)
    lost[first[40:]] = True  # those whose pairs come after the first 40
    assert broken[lost].isnan().all() and torch.equal(broken[~lost], seen[~lost])
    assert lost.any() and not lost.all()


@pytest.mark.parametrize("n", [1, 20])
def test_nan_propagates(make_case, n):
    case = on_device(make_case(n=n, density=1.1))
    with torch.no_grad():
        case.x[0, 3] = float("nan")
    output = case.run("triton")
    assert output[0].isnan().all()
    assert not output[1:].isnan().any()


def test_expanded_gradient_and_backward_twice(make_case):
    case = on_device(make_case(n=18))
    total = case.run("triton").sum()
    first = torch.autograd.grad(total, case.leaves, retain_graph=True)
    second = torch.autograd.grad(total, case.leaves)
    for a, b, wanted in zip(first, second, torch.autograd.grad(case.reference().sum(), case.leaves), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [2, 18])
def test_all_tokens_on_one_pathway(make_case, check_case, n):
    case = make_case(n=n)
    chosen = torch.zeros_like(case.chosen)
    chosen[:, 1] = True
    check_case(on_device(case._replace(chosen=chosen)), "triton")


def test_inputs_and_gradient_that_are_not_contiguous(make_case):
    case = on_device(make_case(n=18, gated=True))
    strided = case._replace(
        x=case.x.detach().t().contiguous().t().requires_grad_(),
        W_in=case.W_in.detach().t().contiguous().t().requires_grad_(),
        W_out=torch.stack([case.W_out.detach()] * 2, 2)[:, :, 0].requires_grad_(),
        gates=case.gates.detach().t().contiguous().t().requires_grad_(),
        chosen=case.chosen.t().contiguous().t(),
    )
    upstream = torch.randn(case.x.shape[::-1], generator=torch.Generator().manual_seed(2)).to(DEVICE).t()
    assert not (upstream.is_contiguous() or strided.x.is_contiguous() or strided.W_out.is_contiguous())
    grads = torch.autograd.grad(strided.run("triton"), strided.leaves, upstream)
    expected = torch.autograd.grad(case.reference(), case.leaves, upstream)
    for actual, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [2, 18])
def test_opcheck(make_case, n):
    library.opcheck(ops.OPERATORS["triton"], on_device(make_case(n=n)))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("n", [4, 40])
def test_cuda_graph_and_no_waiting_for_the_host(make_case, n):
    case = on_device(make_case(n=n, d=16, offsets=(0, 16, 32)))
    with torch.no_grad():
        expected = case.run("triton")
        torch.cuda.set_sync_debug_mode("error")
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = case.run("triton")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph.replay()
    torch.testing.assert_close(output, expected)


def test_offsets_past_2_to_the_31(make_case):
    """Rows beyond 2³¹ elements of buffers that are reserved but, except for the rows used, never touched."""
    d, last = 64, 2**31 // 64 + 5
    half, ints = dict(dtype=torch.float16, device=DEVICE), dict(dtype=torch.int32, device=DEVICE)
    x, hidden, rows, du = (torch.empty(last + 1, d, **half) for _ in range(4))
    generator = torch.Generator().manual_seed(0)
    W = (torch.randn(d, d, generator=generator) / 8).to(**half)
    values = torch.randn(1, d, generator=generator).to(**half)
    x[last] = values
    routes = dict(
        token=torch.full((last + 1,), last, **ints),
        starts=torch.tensor([last, last + 1], **ints),
        tile_pathway=torch.zeros(1, **ints),
        tile_row=torch.full((1,), last, **ints),
        n_tiles=torch.ones(1, **ints),
        offsets=torch.tensor([0, d], **ints),
    )
    math = dict(ALIGNED=True, PRECISION="ieee", UPCAST=False, ROWS=16, COLS=64, INNER=64)
    flags = dict(ACT="relu", BIASED=False, GATED=False, GATE_BIASED=False)
    gates = torch.ones(last + 1, 1, **half)
    grouped.up[(1, 1)](x, W, W, W, W, gates, hidden, d=d, P=1, M=d, **routes, **flags, **math)
    expected = (values.float() @ W.float().T).relu()
    torch.testing.assert_close(hidden[last:].float(), expected, rtol=2e-3, atol=2e-3)
    sizes, d_gates = dict(d=d, P=1, M=d, cells=last + 1), torch.empty(1, last + 1, 1, device=DEVICE)
    inputs = (x, x, W, W, W, W, W, gates, rows, du, du, d_gates)  # without a gate nothing is written to dv
    gradients.hidden_gradients[(1, 1)](*inputs, **sizes, **routes, **flags, **math)
    torch.testing.assert_close(rows[last:], hidden[last:])
    slope = (expected > 0) * (values.float() @ W.float().T)
    torch.testing.assert_close(du[last:].float(), slope, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(d_gates[0, last:], (expected * slope).sum(1, keepdim=True), rtol=2e-3, atol=2e-3)
    del routes["token"]
    grouped.down[(1, 1)](hidden, W, hidden, W, rows, d=d, M=d, GATED=False, **routes, **math)
    expected = expected @ W.float()
    torch.testing.assert_close(rows[last:].float(), expected, rtol=4e-3, atol=4e-3)
    y = torch.empty(1, d, **half)
    pair = torch.full((1, 1), last, **ints)
    grouped.combine[(1, 1)](rows, pair, y, d, last + 1, P=1, COLS=64, UPCAST=False)
    assert torch.equal(y, rows[last:])
    grouped.combine[(1, 1)](rows, pair, y, d, last, P=1, COLS=64, UPCAST=False)
    assert y.isnan().all()  # a pair beyond the capacity is never dropped in silence
    out = torch.empty(d, d, **half)
    token = torch.full((last + 1,), last, **ints)
    starts, offsets = routes["starts"], routes["offsets"]
    math = math | dict(ROWS=64)
    gradients.weight_gradient[(1, 1, 1)](hidden, x, out, out, token, starts, offsets, d, d, BIASED=False, **math)
    torch.testing.assert_close(out.float(), hidden[last:].float().T @ values.float(), rtol=2e-3, atol=2e-3)


MANY = {"single neurons": tuple(range(301)), "small": (*range(0, 600, 2), 601, 601, 640)}


@pytest.mark.parametrize("n", [1, 3, 20])  # rows of one token, of a few, all rows masked
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("offsets", MANY)
def test_many_small_pathways(make_case, check_case, poison_new_tensors, offsets, gated, n):
    assert len(MANY[offsets]) > backends.GPU_PATHWAYS + 1
    case = on_device(make_case(n=n, d=24, offsets=MANY[offsets], gated=gated, biased=gated, density=0.1))
    poison_new_tensors()
    check_case(case, "triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_small_pathways_in_sixteen_bits(make_case, check_case, dtype):
    for n in (1, 3, 17):
        case = make_case(n=n, d=16, offsets=MANY["single neurons"], gated=True, dtype=dtype)
        gates = case.gates.detach().float().requires_grad_()
        check_case(on_device(case._replace(gates=gates)), "triton")


@pytest.mark.parametrize("n", [1, 4])
def test_rows_of_skipped_small_pathways_are_never_read(make_case, n):
    case = on_device(make_case(n=n, d=16, offsets=MANY["small"], gated=True, density=0.05))
    skipped = ~case.chosen.any(0).repeat_interleave(torch.tensor(case.offsets, device=DEVICE).diff())
    clean = case.run("triton")
    with torch.no_grad():
        for weight in (case.W_in, case.b_in, case.W_gate, case.b_gate, case.W_out):
            weight[skipped] = float("nan")
        case.gates[~case.chosen] = float("nan")
        assert torch.equal(case.run("triton"), clean)
