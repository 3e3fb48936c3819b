"""The refitted down-projection is the least-squares answer, and changes nothing where nothing is skipped."""

import dataclasses

import pytest
import torch

from slms.models.activations import mlp_inputs
from slms.models.anatomy import find_mlps
from slms.models.convert import route
from slms.models.refit import RIDGE
from slms.models.routed import routed_modules
from slms.models.weights import neurons, read_mlp
from slms.routing import RoutingConfig

CONFIG = RoutingConfig(n_pathways=5, k=2, every_n_layers=1, router="linear", mean_compensation=True, refit=True)


def output(mlp, x):
    with torch.no_grad():
        return mlp(x)


@pytest.mark.parametrize("gate", ["ramp", "softmax"])
def test_it_is_the_least_squares_answer(tiny, tokens, family, gate):
    model, calibration = tiny(family), tokens(12, 16, seed=1)
    config = dataclasses.replace(CONFIG, gate=gate)
    refitted, plain = (
        routed_modules(route(model, c, calibration))["L1.mlp"]
        for c in (config, dataclasses.replace(config, refit=False))
    )
    dense = find_mlps(model)[1]
    with torch.no_grad(), mlp_inputs(model, [1]) as found:
        model(calibration)
    x = found[1]
    w = read_mlp(dense)
    y = output(dense, x) - (0 if w.b_out is None else w.b_out)
    routes = plain.routes(x)
    sizes = torch.tensor(plain.offsets).diff()
    h = (neurons(w, x)[:, plain.permutation] * routes.gates.repeat_interleave(sizes, 1)).double()
    left = (output(dense, x) - output(plain, x)).double()
    scale = 1 / y.norm(dim=1)
    scale = scale.clamp(max=4 * scale.median()).double()[:, None]
    h, left = h * scale, left * scale
    penalty = (RIDGE * h.square().sum(0).mean()).sqrt() * torch.eye(h.shape[1])
    change = torch.linalg.lstsq(
        torch.cat([h, penalty]), torch.cat([left, torch.zeros(h.shape[1], left.shape[1])])
    ).solution
    torch.testing.assert_close((refitted.W_out - plain.W_out).double(), change, atol=1e-4, rtol=1e-3)
    for name, tensor in plain.state_dict().items():
        assert name == "W_out" or torch.equal(tensor, refitted.state_dict()[name])
    after = (output(dense, x) - output(refitted, x)).double() * scale
    assert after.square().sum() < left.square().sum()


def test_it_logs_the_error_that_it_lowers(tiny, tokens, caplog):
    with caplog.at_level("INFO", "slms.models.group_calibration"):
        route(
            tiny("llama"),
            dataclasses.replace(
                CONFIG, router="gate", router_bias=None, router_init=None, gate="unit", mean_compensation=False
            ),
            tokens(12, 16),
        )
    said = [line.split(" from ")[1].split(" to ") for line in caplog.messages if "the refit lowers" in line]
    assert len(said) == 3 and all(float(before) > float(after) > 0 for before, after in said)


def test_where_every_pathway_runs_nothing_changes(tiny, tokens, family):
    model, ids = tiny(family), tokens(2, 11)
    routed = route(model, dataclasses.replace(CONFIG, k=5), tokens(8, 16))
    for i, mlp in enumerate(routed_modules(routed).values()):
        torch.testing.assert_close(read_mlp(mlp).W_out, read_mlp(find_mlps(model)[i]).W_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(routed(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
