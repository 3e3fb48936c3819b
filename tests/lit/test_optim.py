from itertools import pairwise

import pytest
import torch
from torch import nn

from slms.lit.optim import OptimizerConfig, build_optimizer, lr_share, train_only
from slms.models.base import init_base
from slms.models.convert import route
from slms.models.source import BaseConfig
from slms.routing import RoutingConfig


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.mlp = nn.ModuleDict({"router": nn.Linear(3, 2)})


def test_groups_decay_matrices_only_and_give_routers_their_own_rate():
    net = Net()
    net.body.bias.requires_grad_(False)
    groups = build_optimizer(net, OptimizerConfig(lr=0.1, router_lr=0.3, weight_decay=0.5)).param_groups
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        id(net.body.weight): (0.1, 0.5),
        id(net.mlp["router"].weight): (0.3, 0.5),
        id(net.mlp["router"].bias): (0.3, 0.0),
    }


def test_schedule_rises_then_falls_to_its_end():
    config = OptimizerConfig(warmup=0.1, lr_end=0.05)
    shares = [lr_share(step, 200, config) for step in range(201)]
    assert shares[19] == shares[20] == 1.0 and abs(shares[200] - 0.05) < 1e-12
    assert all(a < b for a, b in pairwise(shares[:20]))
    assert all(a > b for a, b in pairwise(shares[20:]))


def test_a_schedule_of_one_step_trains():
    assert lr_share(0, 1, OptimizerConfig(warmup=0.0)) == 1.0


@pytest.mark.parametrize(("field", "value"), [("lr", 0.0), ("lr", float("nan")), ("warmup", 1.5), ("lr_end", -0.1)])
def test_bad_values_are_named(field, value):
    with pytest.raises(ValueError, match=f"model.optimizer.{field} is"):
        OptimizerConfig(**{field: value})


def test_frozen_parameters_are_left_out():
    net = Net().requires_grad_(False)
    net.body.weight.requires_grad_(True)
    groups = build_optimizer(net, OptimizerConfig()).param_groups
    assert [p.shape for g in groups for p in g["params"]] == [torch.Size([4, 3])]


@pytest.mark.parametrize("trained, part", [("all", ""), ("mlps", ".mlp."), ("routers", ".router.")])
def test_only_what_is_named_is_trained(trained, part):
    base = init_base(BaseConfig(name="stories-1m", init="random", d_model=16, n_layers=2, n_heads=2))
    net = route(base, RoutingConfig(n_pathways=4, k=2, layers=[1], router_hidden=8))
    train_only(net, trained)
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {
        n for n, _ in net.named_parameters() if part in n
    }
    if trained == "routers":
        with pytest.raises(ValueError, match=r"model\.train is routers; this model has no such weights"):
            train_only(base, trained)
