"""Every CPU backend against the reference: types, sizes, edges, and its registration with PyTorch."""

import pytest
import torch
from torch import library

from slms.kernels import ACTIVATIONS, ops

SKIPPING = ["grouped", "rows"]
BACKENDS = ["dense", *SKIPPING]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_parity(make_case, check_case, backend, gated, biased, activation):
    check_case(make_case(activation=activation, gated=gated, biased=biased), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types(make_case, check_case, backend, dtype):
    if backend == "rows" and dtype != torch.bfloat16:
        with pytest.raises(ValueError, match="float32 and bfloat16"):
            make_case(dtype=dtype).run(backend)
        return
    case = make_case(n=9, d=32, offsets=(0, 16, 32, 64), gated=True, dtype=dtype)
    gates = case.gates.detach().to(torch.promote_types(dtype, torch.float32))  # as a router in float32 gives them
    check_case(case._replace(gates=gates.requires_grad_()), backend)


EDGES = {
    "one token": dict(n=1),
    "zero tokens": dict(n=0),
    "one pathway": dict(offsets=(0, 5)),
    "no pathway chosen": dict(density=0.0),
    "k = P": dict(density=1.1),
    "uneven pathways": dict(offsets=(0, 5, 9, 13)),
    "a pathway without neurons": dict(offsets=(0, 5, 5, 13)),
    "no neurons at all": dict(offsets=(0, 0)),
    "odd sizes": dict(n=5, d=3, offsets=(0, 3, 7)),
    "one neuron each": dict(d=1, offsets=(0, 1, 2, 3)),
    "longer than a chunk": dict(d=19, offsets=(0, 37, 70)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("edge", EDGES)
def test_edges(make_case, check_case, backend, gated, edge):
    check_case(make_case(gated=gated, **EDGES[edge]), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_tokens_on_one_pathway(make_case, check_case, backend):
    case = make_case()
    chosen = torch.zeros_like(case.chosen)
    chosen[:, 1] = True
    check_case(case._replace(chosen=chosen), backend)


@pytest.mark.parametrize("backend", SKIPPING)
@pytest.mark.parametrize("gated", [False, True])
def test_skipped_weights_are_never_read(make_case, backend, gated):
    case = make_case(gated=gated)
    chosen = case.chosen.clone()
    chosen[:, 1] = False
    case = case._replace(chosen=chosen)
    first, last = case.offsets[1:3]

    def outcome(case):
        output = case.run(backend)
        return [output, *torch.autograd.grad(output, case.leaves, torch.ones_like(output))]

    clean = outcome(case)
    with torch.no_grad():
        for weight in (case.W_in, case.b_in, case.W_gate, case.b_gate, case.W_out):
            if weight is not None:
                weight[first:last] = float("nan")
        case.gates[:, 1] = float("nan")
    for before, after in zip(clean, outcome(case), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_propagates(make_case, backend):
    case = make_case(density=1.1)
    with torch.no_grad():
        case.x[2, 3] = float("nan")
    output = case.run(backend)
    assert output[2].isnan().all()
    assert not output[[0, 1, 3]].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_and_expanded_gradient(make_case, backend):
    case = make_case(gated=True)
    leaves = case.leaves
    strided = case._replace(
        x=case.x.detach().t().contiguous().t().requires_grad_(),
        W_in=case.W_in.detach().t().contiguous().t().requires_grad_(),
        W_out=torch.stack([case.W_out.detach()] * 2, 2)[:, :, 0].requires_grad_(),
        gates=case.gates.detach().t().contiguous().t().requires_grad_(),
        chosen=case.chosen.t().contiguous().t(),
    )
    grads = torch.autograd.grad(strided.run(backend).sum(), strided.leaves)
    expected = torch.autograd.grad(case.reference().sum(), leaves)
    for actual, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_that_is_not_contiguous(make_case, backend):
    case = make_case(gated=True)
    upstream = torch.randn(case.x.shape[::-1], generator=torch.Generator().manual_seed(2)).t()
    assert not upstream.is_contiguous()
    grads = torch.autograd.grad(case.run(backend), case.leaves, upstream)
    expected = torch.autograd.grad(case.reference(), case.leaves, upstream)
    for actual, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", SKIPPING)
def test_backward_twice(make_case, backend):
    case = make_case()
    output = case.run(backend).square().sum()
    first = torch.autograd.grad(output, case.leaves, retain_graph=True)
    second = torch.autograd.grad(output, case.leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", SKIPPING)
def test_opcheck(make_case, name, gated):
    case = make_case(gated=gated)
    library.opcheck(ops.OPERATORS[name], case)
    detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in case]
    library.opcheck(ops.BACKWARD[name], [torch.ones_like(detached[0]), *detached])


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_compiles_as_one_graph(make_case, backend):
    case = make_case()
    compiled = torch.compile(lambda: case.run(backend).sin(), fullgraph=True, backend="aot_eager")
    output = compiled()
    grads = torch.autograd.grad(output.sum(), case.leaves)
    expected = case.reference().sin()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for actual, wanted in zip(grads, torch.autograd.grad(expected.sum(), case.leaves), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


def test_compiles_with_changing_numbers_of_tokens(make_case):
    case = make_case()
    torch._dynamo.reset()

    def run(x, gates, chosen):
        return case._replace(x=x, gates=gates, chosen=chosen).run("auto")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for n in (3, 9, 70, 1, 0, 33):
        new = make_case(n=n, seed=n)
        changed = case._replace(x=new.x, gates=new.gates, chosen=new.chosen)
        torch.testing.assert_close(compiled(new.x, new.gates, new.chosen), changed.reference(), rtol=1e-5, atol=1e-5)
