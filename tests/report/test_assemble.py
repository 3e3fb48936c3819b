"""The random model's numbers stand beside the model's, layer by layer and family by family."""

from slms.models.flops import Flops
from slms.report.assemble import compute_of, with_random


def test_random_model_beside_each_number(results_factory):
    mine, other = results_factory(seed=1).layers, results_factory(seed=2).layers
    found = with_random(mine, other[::-1])
    for layer, a, b in zip(found, mine, other, strict=True):
        assert (layer.purity.value, layer.purity.random_model) == (a.purity.value, b.purity.value)
        assert layer.entropy.random_model == b.entropy.value
        assert layer.purity_legacy.random_model == b.purity_legacy.value
        assert layer.utilization.random_model == b.utilization.value
        for family in a.si:
            assert (layer.si[family].value, layer.si[family].random_model) == (a.si[family].value, b.si[family].value)
        assert layer.si_given_token["pos"].random_model == b.si_given_token["pos"].value
        assert layer.pathways == a.pathways


def test_compute_states_shares_saved():
    compute = compute_of(Flops(100, 40.0, 200, 140.0, 0.25))
    assert (compute.active_fraction, compute.mlp_saved, compute.total_saved) == (0.25, 0.6, 0.30000000000000004)
    assert (compute.mlp_dense, compute.total_routed) == (100.0, 140.0)
