"""A routed MLP for a few tokens, router included, in Triton: against the plain router and the reference."""

import pytest
import torch

from slms import kernels
from slms.kernels import Layer, Router
from slms.kernels.gpu.step import Step, choose
from slms.kernels.router import GATES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_router(d, p, dtype, h=10, k=2, gate="ramp", linear=False):
    g = torch.Generator().manual_seed(d + p)

    def normal(*size, scale=1.0):
        return (torch.randn(*size, generator=g) * scale).to(DEVICE, dtype)

    first = (None, None) if linear else (normal(h, d, scale=d**-0.5), normal(h))
    last = (normal(p, d if linear else h), normal(p))
    return Router(*first, *last, normal(p), k, gate, torch.tensor(0.3).to(DEVICE, dtype))


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("gate", GATES)
def test_choice_and_gates(gate, linear):
    router = make_router(600, 6, torch.float32, gate=gate, linear=linear)
    x = torch.randn(5, 600, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gates, chosen = choose(x, router)
    expected, theirs = kernels.choose(x, router)
    assert torch.equal(chosen, theirs)
    torch.testing.assert_close(gates, expected, rtol=1e-5, atol=1e-5)


def test_equal_scores_are_taken_from_the_left_and_nan_chooses_all():
    flat = make_router(24, 6, torch.float32, k=3)
    flat = flat._replace(W_out=torch.zeros_like(flat.W_out), b_out=torch.zeros(6).to(DEVICE))
    flat = flat._replace(bias=torch.zeros(6).to(DEVICE))
    x = torch.zeros(2, 24, device=DEVICE)
    assert choose(x, flat)[1].tolist() == [[True] * 3 + [False] * 3] * 2
    x[1, 3] = float("nan")
    gates, chosen = choose(x, make_router(24, 6, torch.float32))
    assert chosen[1].all() and gates[1].isnan().all() and int(chosen[0].sum()) == 2


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("more", [False, True])
def test_whole(make_case, close, n, dtype, more):
    case = make_case(n=n, d=40, offsets=(0, 16, 32, 37), gated=more, biased=more, dtype=dtype)
    case = case._replace(**{name: getattr(case, name).detach().to(DEVICE) for name in case.tensor_names()})
    router = make_router(40, 3, dtype, k=1 + more, linear=not more)
    b_out, means = (case.x.new_ones(40) / 3, case.x.new_ones(3, 40) / 7) if more else (None, None)
    weights = (case.W_in, case.b_in, case.W_gate, case.b_gate, case.W_out, b_out, means)
    step = Step(Layer(router, *weights, case.offsets, case.activation))
    gates, chosen = kernels.choose(case.x, router)
    exact = case._replace(gates=gates, chosen=chosen).to(torch.float64).reference()
    if more:
        exact = exact + b_out.double() + (~chosen).double() @ means.double()
    output = step(case.x)
    assert output.dtype == dtype and not step.copied
    close(output, exact, dtype, "output")


@pytest.mark.parametrize(("p", "linear"), [(200, True), (300, True), (300, False), (1536, True)])
def test_choice_among_many(p, linear):
    router = make_router(40, p, torch.float32, k=p // 3, gate="softmax", linear=linear)
    x = torch.randn(2, 40, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gates, chosen = choose(x, router)
    expected, theirs = kernels.choose(x, router)
    assert torch.equal(chosen, theirs) and chosen.sum(1).tolist() == [p // 3] * 2
    torch.testing.assert_close(gates, expected, rtol=1e-5, atol=1e-5)
    x[1, 3] = float("nan")
    gates, chosen = choose(x, router._replace(gate="unit"))
    assert gates[1, chosen[1]].isnan().all() and not gates[0].isnan().any()


def test_many_pathways_with_bias_and_means(make_case, close, poison_new_tensors):
    """Single neurons; the rows of those that neither token chose are never read."""
    p = 300
    case = make_case(n=2, d=24, offsets=tuple(range(p + 1)), gated=True)
    case = case._replace(**{name: getattr(case, name).detach().to(DEVICE) for name in case.tensor_names()})
    router = make_router(24, p, torch.float32, k=p // 3, gate="sigmoid")
    b_out, means = case.x.new_ones(24) / 3, case.x.new_ones(p, 24) / torch.arange(1, p + 1).to(case.x)[:, None]
    weights = (case.W_in, case.b_in, case.W_gate, case.b_gate, case.W_out, b_out, means)
    step = Step(Layer(router, *weights, case.offsets, case.activation))
    gates, chosen = kernels.choose(case.x, router)
    exact = case._replace(gates=gates, chosen=chosen).to(torch.float64).reference()
    for weight in (case.W_in, case.b_in, case.W_gate, case.b_gate, case.W_out):
        weight[~chosen.any(0)] = float("nan")
    poison_new_tensors()
    close(step(case.x), exact + b_out + (~chosen).double() @ means.double(), torch.float32, "output")


def test_linear_router_with_gates_of_one_and_means(make_case, close):
    p, k = 32, 11
    case = make_case(n=2, d=48, offsets=tuple(range(0, 2 * p + 1, 2)))
    case = case._replace(**{name: getattr(case, name).detach().to(DEVICE) for name in case.tensor_names()})
    router = make_router(48, p, torch.float32, k=k, gate="unit", linear=True)._replace(ramp=None)
    means = case.x.new_ones(p, 48) / torch.arange(1, p + 1).to(case.x)[:, None]
    weights = (case.W_in, case.b_in, None, None, case.W_out, None, means)
    step = Step(Layer(router, *weights, case.offsets, case.activation))
    gates, chosen = kernels.choose(case.x, router)
    assert chosen.sum(1).tolist() == [k, k]
    assert torch.equal(choose(case.x, router)[1], chosen)
    exact = case._replace(gates=gates, chosen=chosen).to(torch.float64).reference()
    close(step(case.x), exact + (~chosen).double() @ means.double(), torch.float32, "output")


def test_skipped_weights_are_never_read_and_weights_may_change(make_case):
    case = make_case(n=2, d=16, offsets=(0, 16, 32))
    case = case._replace(**{name: getattr(case, name).detach().to(DEVICE) for name in case.tensor_names()})
    router = make_router(16, 2, torch.float32, k=1)
    router = router._replace(bias=torch.tensor([1e6, 0.0]).to(DEVICE))
    step = Step(Layer(router, case.W_in, case.b_in, None, None, case.W_out, None, None, case.offsets, "gelu"))
    clean = step(case.x)
    for weight in (case.W_in, case.b_in, case.W_out):
        weight[16:] = float("nan")
    assert torch.equal(step(case.x), clean)
    case.W_out[:16] *= 2
    torch.testing.assert_close(step(case.x), 2 * clean)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs need a CUDA device")
def test_cuda_graph(make_case):
    case = make_case(n=2, d=16, offsets=(0, 16, 32))
    case = case._replace(**{name: getattr(case, name).detach().to(DEVICE) for name in case.tensor_names()})
    router, x = make_router(16, 2, torch.float32, k=1), case.x.clone()
    assert kernels.fuses(x, case.W_in, 0.5, 2, False, "triton") is None  # with gradients
    with torch.no_grad():
        assert kernels.fuses(x, case.W_in, 0.5, 2, False, "triton") == "triton"
        weights = (case.W_in, case.b_in, None, None, case.W_out, None, None)
        step = kernels.prepare_fused(Layer(router, *weights, case.offsets, "gelu"))
        step(x, "triton")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = step(x, "triton")
        x.neg_()
        graph.replay()
        assert torch.equal(output, step(x, "triton"))
