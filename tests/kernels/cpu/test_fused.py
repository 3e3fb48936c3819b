"""The fused call against the plain router and the reference MLP: gates, types, sizes, threads, edges."""

import pytest
import torch

from slms.kernels import Call, Layer, Router, backends, choose, prepare_fused, routed_mlp_reference
from slms.kernels.cpu import team
from slms.kernels.router import GATES

D, P, H = 24, 6, 10


def make(n, *, gate="ramp", linear=False, gated=False, biased=True, dtype=torch.float32, d=D, f=53, k=2, seed=0):
    """x, router, weights and offsets whose scores are far enough apart that rounding chooses nothing else."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size, scale=1.0):
        return (torch.randn(*size, generator=generator) * scale).to(dtype)

    first = (None, None) if linear else (normal(H, d, scale=d**-0.5), normal(H))
    last = (normal(P, d if linear else H), normal(P))
    router = Router(*first, *last, normal(P), k, gate, torch.tensor(0.3).to(dtype))
    weights = [normal(f, d, scale=d**-0.5), normal(f) if biased else None]
    weights += [normal(f, d, scale=d**-0.5), normal(f) if biased else None] if gated else [None, None]
    weights += [normal(f, d, scale=f**-0.5), normal(d) if biased else None]
    return normal(n, d), router, weights, tuple(f * i // P for i in range(P + 1))


def expected(x, router, weights, offsets, activation="gelu"):
    W_in, b_in, W_gate, b_gate, W_out, b_out = (None if w is None else w.float() for w in weights)
    gates, chosen = choose(x, router)
    y = routed_mlp_reference(Call(x.float(), W_in, b_in, W_gate, b_gate, W_out, gates, chosen, offsets, activation))
    return y if b_out is None else y + b_out


def run(x, router, weights, offsets, activation="gelu", backend="rows"):
    with torch.no_grad():
        return prepare_fused(Layer(router, *weights, None, offsets, activation))(x, backend)


@pytest.mark.parametrize("n", [0, 1, 3, 140])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("gate", GATES)
def test_parity(close, gate, linear, gated, n):
    case = make(n, gate=gate, linear=linear, gated=gated, biased=not linear)
    close(run(*case), expected(*case), torch.float32, "output")


AMX = pytest.param(
    "amx",
    marks=pytest.mark.skipif(backends.refusal("amx", "cpu", torch.bfloat16) is not None, reason="needs a CPU with AMX"),
)

BOTH = pytest.mark.parametrize(
    ("backend", "dtype"), [("rows", torch.float32), pytest.param(*AMX.values, torch.bfloat16, marks=AMX.marks)]
)


@pytest.mark.parametrize("backend", ["rows", AMX])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("sizes", [dict(n=0), dict(n=1), dict(n=5), dict(n=140), dict(n=70, d=33, f=211)])
def test_bfloat16(close, sizes, linear, backend):
    case = make(dtype=torch.bfloat16, gated=True, linear=linear, **sizes)
    output = run(*case, backend=backend)
    assert output.dtype == torch.bfloat16
    close(output, expected(*case), torch.bfloat16, "output")


@pytest.mark.parametrize("k", [1, P])
def test_one_and_all_pathways(close, k):
    case = make(4, k=k, d=1, f=7)
    close(run(*case), expected(*case), torch.float32, "output")


@BOTH
def test_threads_agree(close, monkeypatch, backend, dtype):
    monkeypatch.setattr(team, "TEAM_BYTES", 0)
    case = make(33, gated=True, dtype=dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        several = run(*case, backend=backend)
    finally:
        torch.set_num_threads(before)
    close(several, expected(*case), dtype, "output")


@BOTH
def test_skipped_weights_are_never_read(backend, dtype):
    x, router, weights, offsets = make(3, gated=True, dtype=dtype)
    router = router._replace(bias=torch.tensor([0.0, -1e9, 0.0, 0.0, 0.0, 0.0]).to(dtype))
    clean = run(x, router, weights, offsets, backend=backend)
    for weight in weights[:5]:
        weight[offsets[1] : offsets[2]] = torch.nan
    assert torch.equal(run(x, router, weights, offsets, backend=backend), clean)


def test_nan_stays_with_its_token(close):
    x, *rest = make(4)
    x[1, 2] = torch.nan
    output = run(x, *rest)
    assert output[1].isnan().all()
    close(output[[0, 2, 3]], expected(x, *rest)[[0, 2, 3]], torch.float32, "others")
