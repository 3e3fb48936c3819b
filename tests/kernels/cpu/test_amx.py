"""The MLP on tile registers equals the reference in float64: sizes, edges, threads, CPUs without such registers."""

import pytest
import torch
from torch import library

from slms.kernels import ACTIVATIONS, backends, dispatch, ops
from slms.kernels.cpu import team

needs_amx = pytest.mark.skipif(
    backends.refusal("amx", "cpu", torch.bfloat16) is not None, reason="needs a CPU with AMX"
)
CASES = {
    "whole tiles": dict(n=32, d=64, offsets=(0, 32, 96)),
    "odd sizes": dict(n=37, d=33, offsets=(0, 5, 70)),
    "one token, one neuron each": dict(n=1, d=1, offsets=(0, 1, 2, 3)),
    "zero tokens": dict(n=0),
    "no pathway chosen": dict(density=0.0),
    "k = P": dict(density=1.1),
    "no neurons at all": dict(offsets=(0, 0)),
    "a pathway without neurons": dict(offsets=(0, 5, 5, 13)),
    "more tokens than a block": dict(n=1200, d=40, offsets=(0, 32, 64), density=0.9),
}


def numbers(dtype=torch.bfloat16, **changes):
    """The same numbers in bfloat16, and those in float64."""

    def build(make_case):
        case = make_case(**changes).to(dtype)
        return case, case.to(torch.float64)

    return build


@needs_amx
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_sizes(make_case, check_case, name, gated):
    check_case(make_case(gated=gated, dtype=torch.bfloat16, **CASES[name]), "amx")


@needs_amx
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(make_case, check_case, activation):
    check_case(make_case(n=19, d=48, offsets=(0, 40, 80), activation=activation, dtype=torch.bfloat16), "amx")


def outcome(case):
    output = case.run("amx")
    return [output, *torch.autograd.grad(output, case.leaves, torch.ones_like(output), retain_graph=True)]


@needs_amx
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(make_case, close, monkeypatch, threads):
    case, _ = numbers(n=50, d=40)(make_case)
    alone = outcome(case)
    monkeypatch.setattr(team, "TEAM_BYTES", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    together = outcome(case)
    torch.set_num_threads(before)
    assert torch.equal(together[0], alone[0])  # each token's sum runs in the order of pathways, whoever forms it
    for i, (one, other) in enumerate(zip(alone, together, strict=True)):
        close(other, one, torch.bfloat16, str(i))


@needs_amx
@pytest.mark.parametrize("sizes", [dict(n=33, d=32, offsets=(0, 32, 64, 96)), dict(n=5, d=31, offsets=(0, 3, 40, 45))])
def test_skipped_weights_are_never_read(make_case, sizes):
    case, _ = numbers(gated=True, **sizes)(make_case)
    chosen = case.chosen.clone()
    chosen[:, 1] = False
    case = case._replace(chosen=chosen)
    clean = outcome(case)
    with torch.no_grad():
        for weight in (case.W_in, case.b_in, case.W_gate, case.b_gate, case.W_out):
            weight[slice(*case.offsets[1:3])] = torch.nan
        case.gates[:, 1] = torch.nan
    for before, after in zip(clean, outcome(case), strict=True):
        assert torch.equal(before, after)


@needs_amx
def test_nan_stays_with_its_token(make_case):
    case, _ = numbers(density=1.1, n=20)(make_case)
    with torch.no_grad():
        case.x[2, 3] = torch.nan
        output = case.run("amx")
    assert output[2].isnan().all()
    assert not output[[0, 1, *range(3, 20)]].isnan().any()


@needs_amx
def test_library_products_between(make_case):
    """oneDNN sets the tile registers for itself: neither disturbs the other."""
    case, _ = numbers(n=64, d=64, offsets=(0, 64, 128))(make_case)
    x, W = case.x.detach(), case.W_in.detach()
    with torch.no_grad():
        ours, theirs = case.run("amx"), x @ W.T
        for _ in range(3):
            assert torch.equal(case.run("amx"), ours)
            assert torch.equal(x @ W.T, theirs)


@needs_amx
def test_registration(make_case):
    case, _ = numbers(gated=True, n=5)(make_case)
    library.opcheck(ops.OPERATORS["amx"], case)
    detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in case]
    library.opcheck(ops.BACKWARD["amx"], [torch.ones_like(detached[0]), *detached])
    compiled = torch.compile(lambda: case.run("amx").sin(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), case.run("amx").sin())


@pytest.fixture
def without_amx(monkeypatch):
    monkeypatch.setattr(backends, "tile_registers", lambda: False)
    dispatch.forget_choices()
    yield
    dispatch.forget_choices()


def test_a_cpu_without_it(make_case, close, without_amx):
    case, exact = numbers()(make_case)
    with pytest.raises(ValueError, match="`backend` is 'amx'; it needs a CPU with AMX"):
        case.run("amx")
    x, W_in = torch.zeros(1, 512, dtype=torch.bfloat16), torch.empty(2048, 512, dtype=torch.bfloat16)
    many = x.expand(1024, 512)
    with torch.no_grad():
        close(case.run("auto"), exact.reference(), torch.bfloat16, "auto")
        assert dispatch.fuses(x, W_in, 0.25, 16, False, "auto") == "rows"
        assert dispatch.fuses(x, W_in, 0.25, 16, False, "amx") is None
        assert dispatch.fuses(many, W_in, 0.25, 16, False, "auto") == "rows"  # dense has no matrix units either


def test_other_types(make_case):
    with pytest.raises(ValueError, match=r"`backend` is 'amx'; it (knows bfloat16|needs a CPU)"):
        make_case().run("amx")
