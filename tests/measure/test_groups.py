"""Layers that share a router, measured at every place."""

from dataclasses import replace

import pytest
import torch

import slms
from slms.measure.controlled import ControlOptions, measure_controls
from slms.measure.redundancy import Losses, disabled_rows
from slms.models.activations import neuron_activations
from slms.models.routed import record_routes, routed_modules


@pytest.fixture(scope="module")
def grouped(routed_with_text):
    """The model of `routed_with_text`, whose second layer executes what the first chose."""
    net, blocks = routed_with_text
    routing = slms.RoutingConfig.from_dict(net.config.routing)
    made = type(net)(
        net.config.__class__(**net.config.to_dict() | {"routing": replace(routing, router_layers=2).to_dict()})
    )
    made.load_state_dict(net.state_dict(), strict=False)
    return made.eval(), blocks


def test_every_place_has_numbers_and_controls(grouped):
    net, blocks = grouped
    found = measure_controls(net, blocks, 7, options=ControlOptions(seeds=2))
    for control in found.controls.values():
        keys = {(row.place, row.metric) for row in control.rows}
        assert {(place, "purity") for place in routed_modules(net)} <= keys and control.load_error <= 0.02
    values = {row.family: row.value for row in found.rows if row.metric == "choice_nats"}
    assert set(values) == {"oracle", "random_router"}
    assert all(module.router.chooser is None for module in routed_modules(net).values())


def test_losses_of_other_choices(grouped):
    net, blocks = grouped
    losses = Losses(net, blocks, 7)
    rows = {row.family: row for row in disabled_rows(losses, [1])}
    same = losses.of("same", lambda place, scores, routes: routes.chosen)
    torch.testing.assert_close(same.nll, losses.of("own", None).nll)
    assert {"own", "all", "1 replaced", "1 fewer"} <= set(rows)


def test_reading_activations_changes_nothing(grouped):
    net, blocks = grouped
    ids = torch.from_numpy(blocks.input_ids[:4].astype("int64"))
    plain = net(ids).logits
    with neuron_activations(net) as found, record_routes(net) as routes:
        read = net(ids).logits
    torch.testing.assert_close(read, plain)
    leader, follower = routed_modules(net).values()
    for module in (leader, follower):
        ran = torch.zeros(64, 20, dtype=torch.bool)
        ran[:, module.permutation] = routes[leader.place].chosen.repeat_interleave(4, 1)
        assert not found[module.layer_index][~ran].any()
    read.sum().backward()
    assert leader.router.out.weight.grad.any()
