"""Properties of the compiled gate-selected MLP that the comparison of all backends (test_gate.py) omits: threads."""

import pytest
import torch

from slms.kernels import gate_mlp, gate_mlp_reference, gate_select
from slms.kernels.cpu import team


@pytest.fixture(params=[2, 3])
def threads(request, monkeypatch):
    monkeypatch.setattr(team, "TEAM_BYTES", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["rows", "dense"])
@pytest.mark.parametrize("offsets", [range(38), (0, 1, 1, 20, 37, 38)])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_threads_share_the_work(make_gate_call, threads, offsets, n, backend):
    made = make_gate_call(n, 40, offsets, 2, some_whole=True)
    call = made._make([*(tensor.detach() for tensor in made[:6]), *made[6:]])
    torch.testing.assert_close(gate_mlp(call, backend), gate_mlp_reference(call), rtol=1e-5, atol=1e-5)
    alone = gate_select(call)
    torch.set_num_threads(1)
    assert torch.equal(gate_select(call), alone)
