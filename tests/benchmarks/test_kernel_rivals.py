"""The rivals compute the same as the reference, also gradients; a stand-in checks the calls of ScatterMoE."""

import sys
import types

import pytest
import torch

from benchmarks import kernel_rivals as rivals
from slms.kernels.costs import Shape
from slms.kernels.reference import routed_mlp_reference
from slms.kernels.timing import random_call


def make(gated, density, training=True):
    return random_call(Shape(16, 64, 4, gated, "float32", "cpu", training), 6, density, "gelu_new")


def check(call, run, made=()):
    expected = routed_mlp_reference(call)
    torch.testing.assert_close(run(), expected)
    leaves = [call.x, call.gates, call.W_out]
    grads = torch.autograd.grad(run(), [*leaves, *made], torch.ones_like(expected))
    for actual, wanted in zip(grads, torch.autograd.grad(expected, leaves, torch.ones_like(expected)), strict=False):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("gated", [False, True])
def test_dense(gated):
    call = make(gated, 1.0)._replace(gates=torch.ones(6, 4))
    expected = routed_mlp_reference(call)
    torch.testing.assert_close(rivals.dense_mlp(call, None), expected)
    torch.testing.assert_close(rivals.dense_mlp(call, call.W_out.t().contiguous()), expected)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("density", [0.25, 0.5, 1.0])
def test_grouped_mm(gated, density):
    call = make(gated, density)
    check(call, *rivals.grouped_mm(call))


def parallel_linear(x, W, k, experts, scattered, ends, *, expert_biases=None, gates=None, grouped_in=False, **_):
    """What ScatterMoE's function of this name computes: W [E, in, out], rows sorted by expert between calls."""
    rows = x if grouped_in else x[scattered // k]
    out = torch.stack([row @ W[e] for row, e in zip(rows, experts.tolist(), strict=True)])
    if expert_biases is not None:
        out = out + expert_biases[experts]
    if gates is None:
        return out
    ungrouped = torch.zeros_like(out).index_copy(0, scattered, out).view(*gates.shape, -1)
    return (gates.unsqueeze(1) @ ungrouped).squeeze(1)


def flatten_sort_count(experts, num_experts):
    order = experts.flatten().sort()
    return order.values, order.indices, experts.flatten().bincount(minlength=num_experts).cumsum(0)


@pytest.mark.parametrize("gated", [False, True])
def test_scattermoe(gated, monkeypatch):
    stand_in = types.ModuleType("scattermoe.parallel_experts")
    stand_in.parallel_linear, stand_in.flatten_sort_count = parallel_linear, flatten_sort_count
    monkeypatch.setitem(sys.modules, "scattermoe", types.ModuleType("scattermoe"))
    monkeypatch.setitem(sys.modules, "scattermoe.parallel_experts", stand_in)
    call = make(gated, 0.5)
    run, made = rivals.scattermoe(call)
    assert len(made) == gated
    check(call, run, made)
    assert not rivals.scattermoe_runs("cpu")
