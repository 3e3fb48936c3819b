"""Every library gets the same batches; ours comes back as the coder that a run exports."""

import numpy as np
import torch

from benchmarks.coder_rivals import Task, ours

D, S, K = 8, 24, 3


def task(kind="topk", seed=0, n=100, batch_size=16, steps=30):
    rows = np.random.default_rng(0).standard_normal((n, D)).astype("float32") + 2
    return Task(rows, kind, S, K, batch_size, steps, seed, 0.01, "default")


def test_batches_are_the_same_each_time_and_another_order_for_another_seed():
    first, again, other = (
        [batch.numpy() for batch, _ in zip(t.batches(), range(9), strict=False)] for t in (task(), task(), task(seed=1))
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_a_pass_takes_every_row_at_most_once():
    made = task(n=100, batch_size=16)
    where = {row.tobytes(): i for i, row in enumerate(made.train)}
    batches = made.batches()
    passes = [[where[row.tobytes()] for _ in range(6) for row in next(batches).numpy()] for _ in range(2)]
    assert [len(rows) == len(set(rows)) == 96 for rows in passes] == [True, True]
    assert passes[0] != passes[1]


def test_ours_reads_the_activations_themselves():
    for kind in ("topk", "batch_topk"):
        made = task(kind, n=640)
        trained, x = ours(made), torch.from_numpy(made.train)
        assert (trained.threshold is None) == (kind == "topk")
        pre = trained.pre(x)
        assert pre.shape == (640, S) and pre.min() == 0
        top = pre.topk(K, dim=1)
        error = (x - trained.decode(torch.zeros_like(pre).scatter(1, top.indices, top.values))).square().sum()
        assert error < (x - x.mean(0)).square().sum()
