"""Properties of the compiled gate-selected MLP that the comparison of all backends (test_gate.py) omits: threads."""

import pytest
import torch

from slms.kernels import gate_mlp, gate_mlp_reference, gate_select, prepare_gate
from slms.kernels.cpu import team
from slms.kernels.cpu.gate_blocks import BLOCK, TOKENS
from slms.kernels.cpu.gate_rows import interleave, interleaved

CHOICES = (
    (range(38), 2, None, False),
    ((0, 1, 1, 20, 37, 38), 2, None, False),
    (range(38), 30, 15, False),
    (range(38), 30, 15, True),
)
"""Offsets, k, k_out, and whether thresholds choose."""


@pytest.fixture(params=[2, 3])
def threads(request, monkeypatch):
    monkeypatch.setattr(team, "TEAM_BYTES", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["rows", "dense"])
@pytest.mark.parametrize(("offsets", "k", "k_out", "held"), [*CHOICES])
@pytest.mark.parametrize("n", [0, 1, 5, 29])
def test_threads_share_the_work(make_gate_call, threads, offsets, k, k_out, held, n, backend):
    made = make_gate_call(n, 40, offsets, k, some_whole=True, k_out=k_out, held=held)
    call = made._make([*(tensor.detach() for tensor in made[:6]), *made[6:]])
    torch.testing.assert_close(gate_mlp(call, backend), gate_mlp_reference(call), rtol=1e-5, atol=1e-5)
    alone = gate_select(call)
    torch.set_num_threads(1)
    assert torch.equal(gate_select(call), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("offsets", "k", "k_out", "held"), [*CHOICES])
@pytest.mark.parametrize("n", [1, 5, 13])
def test_interleaved_rows_are_read_in_place(make_gate_call, offsets, k, k_out, held, n, dtype):
    """The output is the same, nothing is copied, and a later change of the weights is seen."""
    made = make_gate_call(n, 40, offsets, k, some_whole=True, k_out=k_out, held=held)
    call = made._make([*(None if t is None else t.detach().to(dtype) for t in made[:6]), *made[6:]])
    both = torch.stack([call.W_in, call.W_out], 1)
    together = call._replace(W_in=both[:, 0], W_out=both[:, 1])
    assert interleaved(together.W_in, together.W_out) and not interleaved(call.W_in, call.W_out)
    assert not interleaved(together.W_out, together.W_in)
    apart, run = prepare_gate(call), prepare_gate(together)
    assert not run.copied
    torch.testing.assert_close(run(call.x), apart(call.x), rtol=1e-5, atol=1e-5)
    both.mul_(2)
    changed = prepare_gate(call._replace(W_in=2 * call.W_in, W_out=2 * call.W_out))
    torch.testing.assert_close(run(call.x), changed(call.x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("offsets", "k", "k_out", "held"), [*CHOICES])
def test_interleaved_rows_among_threads(make_gate_call, threads, offsets, k, k_out, held):
    made = make_gate_call(5, 40, offsets, k, some_whole=True, k_out=k_out, held=held)
    call = made._make([*(None if t is None else t.detach() for t in made[:6]), *made[6:]])
    W_in, W_out = interleave(call.W_in, call.W_out)
    together = call._replace(W_in=W_in, W_out=W_out)
    torch.testing.assert_close(prepare_gate(together)(call.x), gate_mlp_reference(call), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k_out", [None, 9])
def test_many_tokens_in_blocks_of_tokens_and_of_rows(make_gate_call, k_out):
    """Wide rows make a block hold fewer of them than there are, so that tokens come back to their later neurons."""
    n, d = TOKENS + 7, 3500
    assert BLOCK // (4 * d) < 38
    made = make_gate_call(n, d, range(39), 15, some_whole=True, k_out=k_out)
    call = made._make([*(tensor.detach() for tensor in made[:6]), *made[6:]])
    torch.testing.assert_close(gate_mlp(call, "rows"), gate_mlp_reference(call), rtol=1e-4, atol=1e-5)
