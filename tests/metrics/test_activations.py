"""Streamed activations, in any order and in halves, give what the functions give on the whole."""

import pytest
import torch
import torch.distributed as dist

from slms.metrics.activations import CoActivation, Rows, SparsitySums
from slms.metrics.functional import activation_sparsity, activation_sparsity_legacy


def stream(n=600, f=20, seed=0):
    g = torch.Generator().manual_seed(seed)
    activations = torch.relu(torch.randn(n, f, generator=g))
    activations[5] = 0
    return activations, torch.arange(n) // 30, torch.arange(n) % 30


def test_sparsity_of_a_stream_is_that_of_the_whole():
    a, documents, _ = stream()
    norm = torch.rand(20) + 0.5
    whole, left, right = (SparsitySums(norm) for _ in range(3))
    whole.update(a, documents)
    left.update(a[:100], documents[:100])
    right.update(a[100:], documents[100:])
    left.merge_state(right)
    found = left.compute()
    assert [float(x) for x in found.value] == pytest.approx([float(x) for x in activation_sparsity(a, norm)])
    assert [float(x) for x in found.legacy] == pytest.approx([float(x) for x in activation_sparsity_legacy(a)])
    assert [float(x) for x in found.half_width] == pytest.approx([float(x) for x in whole.compute().half_width])
    assert found.n == 600 and 0 < float(found.half_width.gini) < 0.05


def test_one_document_has_no_interval():
    metric = SparsitySums()
    metric.update(stream()[0], torch.zeros(600).long())
    assert metric.compute().half_width.gini.isnan() and not metric.compute().value.gini.isnan()


def kept(parts, n_kept=64, seed=0):
    metric = CoActivation(20, n_kept, seed)
    for part in parts:
        metric.update(*part)
    return metric


def test_kept_tokens_do_not_depend_on_order_or_processes():
    everything = stream()
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    halves = [tuple(x[:250] for x in everything), tuple(x[250:] for x in everything)]
    expected = kept([everything]).compute()
    left, right = kept(halves[:1]), kept(halves[1:])
    left.merge_state(right)
    for metric in (kept(halves), kept([tuple(x[order] for x in everything)]), left):
        assert all(torch.equal(a, b) for a, b in zip(metric.compute(), expected, strict=True))


def test_kept_tokens_are_true_rows_drawn_evenly():
    everything = stream(n=3000)
    activations, groups = kept([everything], n_kept=300).compute()
    assert activations.shape == (300, 20)
    rows = {tuple(row): group for row, group in zip(everything[0].tolist(), (everything[1] % 16).tolist(), strict=True)}
    assert all(rows[tuple(row)] == g for row, g in zip(activations.tolist(), groups.tolist(), strict=True))
    early = {tuple(row) for row in everything[0][:1500].tolist()}
    first_half = sum(tuple(row) in early for row in activations.tolist())
    assert 115 < first_half < 185
    assert not torch.equal(kept([everything], 300, seed=1).compute()[0], activations)


def test_fewer_tokens_than_places():
    activations, groups = kept([tuple(x[:10] for x in stream())]).compute()
    assert activations.shape == (10, 20) and groups.shape == (10,)


def test_rows_stay_rows_where_processes_synchronise(tmp_path):
    """Within a process group torchmetrics hands `compute` one tensor in place of the list."""
    rows = Rows()
    rows.update(torch.arange(6.0).view(2, 3))
    rows.update(torch.ones(1, 3))
    alone = rows.compute()
    joined = not dist.is_initialized()  # an earlier test may have left its group
    if joined:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    again = Rows()
    again.update(alone[:2])
    again.update(alone[2:])
    found = again.compute()
    if joined:
        dist.destroy_process_group()
    assert alone.shape == (3, 3) and torch.equal(found, alone)
