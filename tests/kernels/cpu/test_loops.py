"""The compiled loops alone: a team's shares, run one after another on one thread, add up to the whole."""

import pytest
import torch

from slms.kernels.cpu import grouped, rows


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("team", [2, 5])
def test_shares_of_a_team(make_case, close, monkeypatch, team, gated):
    def one_after_another(loop, team, arguments):
        for thread in range(team):
            loop(arguments, thread, team)

    monkeypatch.setattr(rows, "team_size", lambda *_, **__: team)
    monkeypatch.setattr(rows, "run", one_after_another)
    case = make_case(n=9, d=20, offsets=(0, 18, 19, 19, 40), gated=gated)
    case = case._make(value.detach() if isinstance(value, torch.Tensor) else value for value in case)
    close(rows.rows_forward(case), grouped.grouped_forward(case), torch.float32, "output")
    upstream = torch.randn(case[0].shape, generator=torch.Generator().manual_seed(1))
    wanted = grouped.grouped_backward(upstream, case)
    for name, actual, expected in zip(wanted._fields, rows.rows_backward(upstream, case), wanted, strict=True):
        close(actual, expected, torch.float32, name)
