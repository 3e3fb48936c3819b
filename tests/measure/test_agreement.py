"""Agreement of choices against a loop over tokens and neurons."""

import copy

import pytest
import torch

from slms.measure.agreement import agreement_rows, shared_neurons
from slms.models.routed import record_routes, routed_modules
from tests.measure.test_redundancy import model  # noqa: F401  a fixture


def executed(net, blocks, place):
    """Which neurons of the dense model each token executes, bool [n, f]."""
    mlp = routed_modules(net)[place]
    with torch.no_grad(), record_routes(net) as routes:
        net(torch.from_numpy(blocks.input_ids.astype("int64")))
    found = torch.zeros(len(routes[place].chosen), len(mlp.permutation), dtype=torch.bool)
    for p in range(mlp.config.n_pathways):
        for neuron in mlp.permutation[mlp.offsets[p] : mlp.offsets[p + 1]].tolist():
            found[:, neuron] = routes[place].chosen[:, p]
    return found


def test_rows_are_the_shares_of_tokens_and_neurons(model):  # noqa: F811
    net, blocks = model
    other = copy.deepcopy(net)
    for mlp in routed_modules(other).values():
        torch.nn.init.normal_(mlp.router.out.weight)
        mlp.permutation.copy_(mlp.permutation.roll(3))
    real = torch.from_numpy(blocks.doc_ids.flatten() >= 0)
    for row in agreement_rows(net, other, blocks, 5):
        a, b = (executed(x, blocks, row.place)[real].double() for x in (net, other))
        assert row.value == pytest.approx(float((a * b).mean()))
        assert row.control == pytest.approx(float((a.mean(0) * b.mean(0)).mean()))
        assert row.difference == pytest.approx(row.value - row.control)
        assert row.difference_low < row.difference < row.difference_high and row.n == int(real.sum())
    (same, *_) = agreement_rows(net, net, blocks, 5)
    assert same.value == pytest.approx(float(executed(net, blocks, same.place)[real].double().mean()))
    mlp = routed_modules(net)["L0.mlp"]
    assert torch.equal(shared_neurons(mlp, mlp), torch.diag(torch.tensor(mlp.offsets).diff()).double())


def test_places_that_differ_are_left_out(model):  # noqa: F811
    net, blocks = model
    assert [row.place for row in agreement_rows(net, net, blocks, 5)] == list(routed_modules(net))
