"""How many threads a loop gets: by what it reads, by what each thread reserves, by the OpenMP library."""

import pytest
import torch

from slms.kernels.cpu import team


@pytest.fixture(autouse=True)
def eight_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(team, "gnu_openmp", lambda: (object(), 1, 1))


def test_small_calls_wake_nobody():
    assert team.team_size() == team.team_size(team.TEAM_BYTES) == 8
    assert team.team_size(team.TEAM_BYTES - 1) == 1


@pytest.mark.parametrize(("each", "expected"), [(team.SCRATCH // 8, 8), (team.SCRATCH // 3, 3), (team.SCRATCH * 2, 1)])
def test_memory_bounds_the_team(each, expected):
    assert team.team_size(bytes_each=each) == expected


def test_another_openmp_library(monkeypatch):
    monkeypatch.setattr(team, "gnu_openmp", lambda: (None, 0, 0))
    assert team.team_size() == 1


def test_detection(monkeypatch):
    class Without:
        def __init__(self, name):
            """A process without GNU OpenMP."""

    monkeypatch.undo()
    monkeypatch.setattr(team.ctypes, "CDLL", Without)
    assert team.gnu_openmp.__wrapped__() == (None, 0, 0)
