"""Controls choose on the router's own inputs, with its loads, under every rule, the same for a seed."""

import pytest
import torch

from slms.measure.controls import CONTROLS, fit_control, mismatch
from slms.models.base import init_base
from slms.models.convert import route
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.routing import RoutingConfig

N, D, P = 1500, 6, 8


def _router(**options):
    torch.manual_seed(1)
    config = RoutingConfig(n_pathways=P, k=3, router="linear", **options)
    mlp = RoutedMLP(D, 16, config, activation="gelu", layer_index=0)
    x = torch.randn(N, D) * torch.tensor([9.0, 1, 1, 1, 1, 0.1]) + 3
    mlp.router.out.weight.data.normal_()
    return mlp, x, mlp.router.route(x).chosen


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("options", [{}, {"n_shared": 2}, {"rule": "threshold", "tau": 0.4}, {"rule": "top_p"}])
def test_loads_are_those_of_the_router(name, options):
    mlp, x, chosen = _router(**options)
    fitted = fit_control(CONTROLS[name], mlp, x, chosen, seed=0)
    found = fitted.choose(x, chosen)
    assert mismatch(found, chosen) <= 0.02 and not found.equal(chosen)
    if options.get("rule", "top_k") == "top_k":
        assert found.sum(1).equal(chosen.sum(1))
    assert found[:, : options.get("n_shared", 0)].all()
    assert fit_control(CONTROLS[name], mlp, x, chosen, seed=0).choose(x, chosen).equal(found)
    assert not fit_control(CONTROLS[name], mlp, x, chosen, seed=1).choose(x, chosen).equal(found)


def test_geometry_finds_clusters():
    """Pathways that serve one cluster each are found again by the inputs alone, which random directions are not."""
    torch.manual_seed(0)
    config = RoutingConfig(n_pathways=4, k=1, router="linear")
    mlp = RoutedMLP(D, 16, config, activation="gelu", layer_index=0)
    label = torch.randint(4, (N,))
    x = 6 * torch.nn.functional.one_hot(label, D).float() + 0.3 * torch.randn(N, D)
    chosen = torch.nn.functional.one_hot(label, 4).bool()
    found = fit_control(CONTROLS["geometry"], mlp, x, chosen, seed=0).choose(x, chosen)
    table = torch.zeros(4, 4).index_put_((label, found.float().argmax(1)), torch.ones(N), accumulate=True)
    assert table.max(1).values.sum() > 0.9 * N


@pytest.mark.parametrize("name", CONTROLS)
def test_a_token_that_keeps_every_unit_keeps_them_under_a_control_too(name):
    mlp, x, chosen = _router()
    chosen = chosen.clone()
    chosen[[3, 700]] = True
    found = fit_control(CONTROLS[name], mlp, x, chosen, seed=0).choose(x, chosen)
    assert found.sum(1).equal(chosen.sum(1)) and found[[3, 700]].all()
    assert mismatch(found, chosen) <= 0.02


@pytest.mark.parametrize("name", CONTROLS)
def test_shared_heads_are_always_chosen_and_the_others_have_their_loads(name):
    torch.manual_seed(1)
    config = RoutingConfig(target="attention", k_heads=4, n_shared_heads=2, router="linear", layers=[0])
    ids = torch.randint(3, 2000, (4, 48))
    heads = routed_modules(route(init_base("stories-1m"), config, ids))["L0.attn"]
    x = torch.randn(N, 64)
    chosen = heads.router.route(x).chosen
    found = fit_control(CONTROLS[name], heads, x, chosen, seed=0).choose(x, chosen)
    assert mismatch(found, chosen) <= 0.02 and not found.equal(chosen)
    assert found[:, heads.router.shared].all() and (found.sum(1) == 4).all()
