"""Kernels write float32 whatever torch's default type is; `--trainer.precision=bf16-true` changes it in every step."""

import pytest
import torch

from slms.kernels import Layer, Router, gate_mlp, prepare_fused, prepare_gate
from slms.kernels.backends import pair_products, refusal
from slms.kernels.costs import narrow
from slms.kernels.cpu import team

N, D, F = 80, 64, 96
wide = pytest.mark.skipif(narrow(), reason="this CPU has no AVX-512")
pairs = pytest.mark.skipif(not pair_products(), reason="this CPU has no AVX512_BF16, or has AMX")
tiles = pytest.mark.skipif(refusal("amx", "cpu", torch.bfloat16) is not None, reason="needs a CPU with AMX")


def differentiated(y, leaves):
    return [y, *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def pathways(make_case, make_gate_call, backend, dtype):
    """A training step of chosen pathways."""
    case = make_case(n=N, d=D, offsets=range(0, F + 1, 12), gated=True, dtype=dtype)
    return lambda: differentiated(case.run(backend), case.leaves)


def gate_step(make_case, make_gate_call, backend, dtype):
    """A training step of chosen neurons."""
    call = make_gate_call(n=N, d=D, offsets=range(F + 1), k=30, k_out=20, held=True, biased=False)
    leaves = [t.detach().to(dtype).requires_grad_() for t in (call.x, call.W_in, call.W_gate, call.W_out)]
    call = call._replace(**dict(zip(("x", "W_in", "W_gate", "W_out"), leaves, strict=True)))
    return lambda: differentiated(gate_mlp(call, backend), leaves)


def gate_tokens(make_case, make_gate_call, backend, dtype):
    """A few tokens' chosen neurons."""
    call = make_gate_call(n=4, d=D, offsets=range(F + 1), k=30, k_out=20, held=True)
    call = call._replace(**{name: getattr(call, name).detach().to(dtype) for name in call._fields[:6]})
    return lambda: [prepare_gate(call)(call.x)]


def fused(make_case, make_gate_call, backend, dtype):
    """Router and pathways of a few tokens in one call."""
    case = make_case(n=5, d=D, offsets=range(0, F + 1, 12), gated=True, dtype=dtype)
    scores = torch.randn(8, D, generator=torch.Generator().manual_seed(3)).to(dtype)
    router = Router(None, None, scores, *torch.zeros(2, 8, dtype=dtype), 4, "unit", torch.tensor(0.0).to(dtype))
    weights = [None if t is None else t.detach() for t in (*case[1:6], None, None)]
    layer, x = prepare_fused(Layer(router, *weights, tuple(case.offsets), case.activation)), case.x.detach()
    return lambda: [layer(x, backend), *layer.choose(x)]


@pytest.mark.parametrize(
    ("prepared", "backend", "dtype"),
    [
        (pathways, "rows", torch.float32),
        (pathways, "rows", torch.bfloat16),
        pytest.param(pathways, "amx", torch.bfloat16, marks=tiles),
        pytest.param(gate_step, "rows", torch.float32, marks=wide),
        pytest.param(gate_step, "rows", torch.bfloat16, marks=pairs),
        (gate_tokens, "rows", torch.float32),
        (gate_tokens, "rows", torch.bfloat16),
        (fused, "rows", torch.float32),
        (fused, "rows", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_default_type_changes_nothing(prepared, backend, dtype, threads, make_case, make_gate_call, monkeypatch):
    monkeypatch.setattr(team, "TEAM_BYTES", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    compute = prepared(make_case, make_gate_call, backend, dtype)
    expected = compute()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = compute()
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
