"""The fused call against the plain router and the reference MLP: gates, types, sizes, threads, edges."""

import pytest
import torch

from slms.kernels import Call, Layer, Router, backends, choose, prepare_fused, routed_mlp_reference
from slms.kernels.cpu import loops, team
from slms.kernels.router import GATES

D, P, H = 24, 6, 10


def make(
    n,
    *,
    gate="ramp",
    linear=False,
    gated=False,
    biased=True,
    dtype=torch.float32,
    d=D,
    f=53,
    p=P,
    k=2,
    seed=0,
    n_shared=0,
):
    """x, router, weights and offsets whose scores are far enough apart that rounding chooses nothing else."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size, scale=1.0):
        return (torch.randn(*size, generator=generator) * scale).to(dtype)

    first = (None, None) if linear else (normal(H, d, scale=d**-0.5), normal(H))
    last = (normal(p, d if linear else H), normal(p))
    router = Router(*first, *last, normal(p), k, gate, torch.tensor(0.3).to(dtype), n_shared)
    weights = [normal(f, d, scale=d**-0.5), normal(f) if biased else None]
    weights += [normal(f, d, scale=d**-0.5), normal(f) if biased else None] if gated else [None, None]
    weights += [normal(f, d, scale=f**-0.5), normal(d) if biased else None]
    return normal(n, d), router, weights, tuple(f * i // p for i in range(p + 1))


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


@pytest.mark.parametrize("n", [1, 5, 70])
@pytest.mark.parametrize("f", [53, 211])
@pytest.mark.parametrize("gate", GATES)
def test_shared_pathways(close, gate, f, n):
    case = make(n, gate=gate, f=f, k=4, n_shared=2, gated=True)
    close(run(*case), expected(*case), torch.float32, "output")


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("gated", [False, True])
def test_pathways_of_one_neuron(close, n, gated):
    case = make(n, gated=gated, p=53, k=26)
    close(run(*case), expected(*case), torch.float32, "output")


@pytest.mark.parametrize("k", [1, 3, 7, 8, 9])
def test_choice_alone_with_equal_scores_negative_ones_and_zeros(k):
    """Of equal scores those to the left are chosen, and −0 equals 0; the oracle sorts."""
    values = torch.tensor([-1.5, 0.0, 2.0, -0.0, 2.0, -1.5, -torch.inf, 0.0, 1e-40])
    x, router, weights, offsets = make(1, linear=True, p=9, k=k, gate="unit")
    router = router._replace(W_out=torch.zeros(9, D), b_out=values, bias=torch.zeros(9))
    gates, chosen = prepare_fused(Layer(router, *weights, None, offsets, "gelu")).choose(x)
    best = sorted(range(9), key=lambda q: (-values[q].item(), q))[:k]
    assert chosen[0].nonzero().flatten().tolist() == sorted(best)
    assert torch.equal(gates, chosen.float()) and torch.equal(chosen, choose(x, router)[1])


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
@pytest.mark.parametrize("sizes", [dict(n=33), dict(n=1), dict(n=3, p=53, k=26)])
def test_threads_agree(close, monkeypatch, sizes, backend, dtype):
    monkeypatch.setattr(team, "TEAM_BYTES", 0)
    case = make(gated=True, dtype=dtype, **sizes)
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


def test_every_thread_has_neurons_even_if_pathways_have_one():
    for m, threads in ((1, 2), (1, 3), (2, 3), (5, 4)):
        bounds = [[loops.share(m, p, thread, threads) for thread in range(threads + 1)] for p in range(12)]
        assert all(row[0] == 0 and row[-1] == m and row == sorted(row) for row in bounds)
        own = torch.tensor(bounds).diff(dim=1).sum(0)
        assert own.max() - own.min() <= m, (m, threads, own)


def test_nan_stays_with_its_token(close):
    x, *rest = make(4)
    x[1, 2] = torch.nan
    output = run(x, *rest)
    assert output[1].isnan().all()
    close(output[[0, 2, 3]], expected(x, *rest)[[0, 2, 3]], torch.float32, "others")
