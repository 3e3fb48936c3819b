"""Properties of the compiled loops that the comparison of all backends (test_ops.py) omits: blocks, chunks, threads."""

import multiprocessing

import numba
import numpy as np
import pytest
import torch

from slms.kernels.cpu import grouped, loops, rows, team


def detached(case):
    return case._make(value.detach() if isinstance(value, torch.Tensor) else value for value in case)


@pytest.fixture(params=[1, 2, 3])
def threads(request, monkeypatch):
    monkeypatch.setattr(team, "TEAM_BYTES", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("sizes", [dict(n=300, d=33), dict(n=129, d=16), dict(n=6, d=1100)])
def test_blocks_chunks_and_threads(make_case, close, threads, gated, sizes):
    # more tokens than a block, more neurons than a chunk, fewer neurons than threads, none at all
    case = detached(make_case(offsets=(0, 37, 38, 38, 70), gated=gated, **sizes))
    close(rows.rows_forward(case), grouped.grouped_forward(case), torch.float32, "output")
    upstream = torch.randn(case[0].shape, generator=torch.Generator().manual_seed(1))
    wanted = grouped.grouped_backward(upstream, case)
    for name, actual, expected in zip(wanted._fields, rows.rows_backward(upstream, case), wanted, strict=True):
        close(actual, expected, torch.float32, name)


def test_same_bits_every_time(make_case, threads):
    case = detached(make_case(n=50, d=40))
    assert torch.equal(rows.rows_forward(case), rows.rows_forward(case))


def test_without_gnu_openmp(make_case, close, monkeypatch):
    monkeypatch.setattr(team, "gnu_openmp", lambda: (None, 0, 0))
    monkeypatch.setattr(rows, "gnu_openmp", lambda: (None, 0, 0))
    monkeypatch.setattr(team, "TEAM_BYTES", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    case = detached(make_case(n=9))
    close(rows.rows_forward(case), grouped.grouped_forward(case), torch.float32, "output")
    wanted = grouped.grouped_backward(torch.ones(9, 8), case)
    close(rows.rows_backward(torch.ones(9, 8), case).W_in, wanted.W_in, torch.float32, "dW_in")


@numba.njit
def greedy_loop(a, thread, threads):
    """Reserves more than there is in thread 1, if it is told to."""
    size = 1 << 58 if a[loops.N] == 1 and thread == 1 else 4
    a[loops.X + thread] = np.ones(size, np.int64)[0]


def greedy_member(arguments):
    rows.take_part(greedy_loop, arguments)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(team.gnu_openmp()[0] is None, reason="needs GNU OpenMP")
def test_a_thread_without_memory_is_an_error(monkeypatch):
    monkeypatch.setitem(rows.MEMBERS, greedy_loop, greedy_member)
    arguments = rows.packed([0], (0, 4))
    rows.run(greedy_loop, 2, arguments)
    arguments[loops.N] = 1
    with pytest.raises(MemoryError, match="could not reserve memory; 2 ran"):
        rows.run(greedy_loop, 2, arguments)
    with pytest.raises(MemoryError):
        greedy_loop(arguments, 1, 2)


def test_a_process_forked_after_use(make_case, close, threads):
    case = detached(make_case(n=50, d=40))
    expected = rows.rows_forward(case)
    here, there = multiprocessing.Pipe()

    def child():
        torch.set_num_threads(1)  # as a DataLoader's worker
        there.send(rows.rows_forward(case).tolist())

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert here.poll(60), "it hangs"
    close(torch.tensor(here.recv()), expected, torch.float32, "output")
    process.join(60)
    assert process.exitcode == 0
