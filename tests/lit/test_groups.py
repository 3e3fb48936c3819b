"""A run in which layers share a router: training, resuming, controls and measurements find it where they look."""

from pathlib import Path

import pytest
import torch

from slms.lit.balances import Balances
from slms.lit.controls import equal_flops
from slms.lit.language_model import LanguageModel
from slms.lit.moves import AssignmentConfig
from slms.measure.dynamick import set_routed_rule
from slms.models.base import BaseConfig, init_base
from slms.models.densities import set_thresholds
from slms.models.routed import record_routes
from slms.routing import RoutingConfig
from slms.routing.balance import BalanceConfig
from tests.lit.short_runs import Middle, fit_briefly

IDS = torch.randint(3, 2000, (4, 48), generator=torch.Generator().manual_seed(0))
CONFIG = RoutingConfig(n_pathways=16, k=5, layers=[1, 3, 4], router="linear", router_layers=2, gate="unit")


def fit(directory: Path, resumed: Path | None = None, config: RoutingConfig = CONFIG, **options) -> LanguageModel:
    """A run of four steps of two batches."""
    model = LanguageModel(BaseConfig(name="stories-1m"), config, calibration_tokens=1024, **options)
    sizes = {"block_size": 64, "batch_size": 2, "train_tokens": 1024, "epoch_tokens": 1024, "val_tokens": 64}
    steps = {"max_epochs": 1, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    fit_briefly(model, sizes, resumed, **steps, callbacks=[Middle(directory, batch=3)])
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"balance": BalanceConfig(bias_rate=1e-2), "k_anneal": 0.5},
        {"config": RoutingConfig(**CONFIG.to_dict() | {"rule": "controlled"}), "recompute": True},
        {"config": RoutingConfig(**CONFIG.to_dict() | {"rule": "relu", "router_bias": True, "gate": "relu"})},
        {"control": "frozen_router"},
        {"assignment": AssignmentConfig(every=1)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path, options):
    whole = fit(tmp_path, **options)
    again = fit(tmp_path, tmp_path / "middle.ckpt", **options)
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert list(whole.balances) == ["L1_mlp", "L4_mlp"]
    assert set(whole.budgets) <= {"L1_mlp", "L4_mlp"}
    with torch.no_grad(), record_routes(whole.net.eval()) as routes:
        whole.net(IDS)
    assert torch.equal(routes["L1.mlp"].chosen, routes["L3.mlp"].chosen)


def test_computing_layers_again_changes_no_weight(tmp_path):
    plain, again = (fit(tmp_path, recompute=recompute) for recompute in (False, True))
    for (name, one), other in zip(plain.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7, msg=name)


def test_a_shared_router_is_balanced_once(tmp_path):
    model = fit(tmp_path)
    with record_routes(model.net) as routes:
        model.net(IDS)
    terms = model.balances.eval().terms(model.net, routes)
    alone = Balances()
    alone.follow(model.net, BalanceConfig())
    parts = [alone.eval().terms(model.net, {place: routes[place]}) for place in ("L1.mlp", "L4.mlp")]
    for name, value in terms.items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).mean())


def test_densities_are_set_for_the_group(tmp_path):
    net = fit(tmp_path, config=RoutingConfig(**CONFIG.to_dict() | {"rule": "controlled"})).net.eval()
    set_thresholds(net, 0.5, IDS, 2)
    for rule in ("top_k", "top_p"):
        with torch.no_grad(), record_routes(net) as routes:
            net(IDS)
        assert all(abs(found.chosen.float().mean() - 0.5) < 0.1 for found in routes.values())
        set_routed_rule(net, rule, 0.5, IDS, 2)


def test_fixed_neurons_get_the_flops_of_the_shared_router():
    base = init_base("stories-1m")
    shared, alone = (RoutingConfig(**CONFIG.to_dict() | {"router_layers": n}) for n in (2, 1))
    fewer, more = (equal_flops(base, routing)["neurons"] for routing in (shared, alone))
    assert {place for place in more if fewer[place] < more[place]} == {"L3.mlp"}


def test_static_time_is_refused():
    with pytest.raises(ValueError, match=r"model.control is static_time and model.routing.router_layers 2; it times"):
        LanguageModel(BaseConfig(name="stories-1m"), CONFIG, "static_time")
