"""The points of the frontier have the right losses, measured shares, FLOPs and budgets, also for routed models."""

import math

import numpy as np
import pytest
import torch
from transformers import GPTNeoForCausalLM

import slms
from slms.data.text import Blocks
from slms.measure import dynamick
from slms.measure.passes import token_nll
from slms.models.dynamic import LEVELS, dynamic_mlps, force_rules, masking, run_dense, set_densities
from slms.models.flops import flops_per_token
from slms.models.routed import record_routes, routed_modules
from tests.tiny import tiny_config

IDS = torch.randint(40, (6, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = tiny_config(40, hidden_size=16, max_position_embeddings=32)
    return GPTNeoForCausalLM(config).eval()


@pytest.fixture(scope="module")
def blocks():
    docs = np.repeat(np.arange(6), 16).reshape(6, 16) // 2
    return Blocks(IDS.numpy().astype(np.uint16), docs, {}, {})


@torch.no_grad()
def test_the_dense_model(model, blocks):
    quality = dynamick.measure_quality(model, blocks, 4)
    nll = token_nll(model, IDS)[:, 8:]  # predictions made at positions 8 … 14
    assert quality.loss.compute().value == pytest.approx(nll.mean().item(), abs=1e-5)
    assert quality.loss.compute().n == 6 * 7 and not quality.kept
    flops = flops_per_token(model, 16)
    assert dynamick.count_cost(model, model, {}, 16) == (1.0, *(flops.mlp_dense, flops.total_dense) * 2)


def test_a_rule(model, blocks):
    dynamic = dynamick.under_rule(model, "oracle", IDS)
    dynamick.set_budget(dynamic, {"L0.mlp": 0.25, "L1.mlp": 0.75})
    quality = dynamick.measure_quality(dynamic, blocks, 4)
    assert [round(quality.kept[place].neurons, 6) for place in ("L0.mlp", "L1.mlp")] == [0.25, 0.75]
    with masking(dynamic), torch.no_grad():
        wanted = token_nll(dynamic, IDS)[:, 8:].mean().item()
    assert quality.loss.compute().value == pytest.approx(wanted, abs=1e-5)
    assert all(mlp.observe is None for mlp in dynamic_mlps(dynamic).values())
    cost, flops = dynamick.count_cost(model, dynamic, quality.kept, 16), flops_per_token(model, 16)
    assert cost.density == pytest.approx(0.5)
    assert cost.mlp_flops == pytest.approx(0.75 * flops.mlp_dense)  # the up-projection and half of the down-projection
    assert cost.model_flops == pytest.approx(flops.total_dense - 0.25 * flops.mlp_dense)
    assert cost[3:] == (flops.mlp_dense, flops.total_dense)  # prompts run dense


@torch.no_grad()
def test_what_runs_dense_is_scored_dense(model, blocks):
    """A rule past its break-even density in one of two layers: quality, shares and FLOPs are those of the mix."""
    dynamic = dynamick.under_rule(model, "low_rank", IDS)
    dynamick.set_budget(dynamic, {"L0.mlp": 0.95, "L1.mlp": 0.25})
    assert run_dense(dynamic) == ["L0.mlp"]
    alone, mixed = (dynamick.measure_quality(dynamic, blocks, 4, as_executed) for as_executed in (False, True))
    set_densities(dynamic, {"L0.mlp": 1.0, "L1.mlp": 0.25})
    assert run_dense(dynamic) == [], "at density 1 nothing would be skipped"
    wanted = dynamick.measure_quality(dynamic, blocks, 4)
    assert mixed.loss.compute().value == pytest.approx(wanted.loss.compute().value, abs=1e-5)
    assert abs(alone.loss.compute().value - wanted.loss.compute().value) > 1e-5
    set_densities(dynamic, {"L0.mlp": 0.95, "L1.mlp": 0.25})
    cost, flops = dynamick.count_cost(model, dynamic, mixed.kept, 16, True), flops_per_token(model, 16)
    mlps = dynamic_mlps(dynamic)
    assert cost.density == pytest.approx(0.625)
    assert cost.mlp_flops == mlps["L0.mlp"].dense_flops() + mlps["L1.mlp"].flops(mixed.kept["L1.mlp"])
    assert cost.mlp_flops < dynamick.count_cost(model, dynamic, alone.kept, 16).mlp_flops < 2 * flops.mlp_dense
    force_rules(dynamic)
    assert run_dense(dynamic) == []
    forced = dynamick.measure_quality(dynamic, blocks, 4, True)
    assert forced.loss.compute().value == pytest.approx(alone.loss.compute().value, abs=1e-6)


def test_the_untrained_router(model, blocks):
    routed = dynamick.under_rule(model, "router", IDS)
    assert {place: mlp.k for place, mlp in routed_modules(routed).items()} == {"L0.mlp": 32, "L1.mlp": 32}
    assert {mlp.k for mlp in routed_modules(dynamick.under_rule(model, "router", IDS, pathways=8)).values()} == {8}
    dense = dynamick.measure_quality(model, blocks, 4).loss
    assert dynamick.measure_quality(routed, blocks, 4).loss.minus(dense).value == pytest.approx(0, abs=1e-5)
    dynamick.set_budget(routed, {"L0.mlp": 0.3, "L1.mlp": 0.01})
    assert [mlp.k for mlp in routed_modules(routed).values()] == [10, 1]
    quality = dynamick.measure_quality(routed, blocks, 4)
    assert [quality.kept[place].neurons for place in ("L0.mlp", "L1.mlp")] == pytest.approx([10 / 32, 1 / 32])
    cost = dynamick.count_cost(model, routed, quality.kept, 16)
    assert cost.density == pytest.approx(11 / 64) and cost.mlp_flops > 11 / 64 * flops_per_token(model, 16).mlp_dense
    assert cost[3:] == cost[1:3]  # prompts are routed too


@torch.no_grad()
def test_costs_and_budgets(model):
    dynamic = dynamick.under_rule(model, "static", IDS)
    calls = []
    costs = dynamick.costs_of(dynamic, IDS, 4, lambda: calls.append(1))
    assert len(calls) == 2 * (len(LEVELS) - 1)

    def nats(**at):
        set_densities(dynamic, {"L0.mlp": at.get("l0", 1.0), "L1.mlp": at.get("l1", 1.0)})
        with masking(dynamic):
            return token_nll(dynamic, IDS)[:, 8:].mean().item()

    assert costs["L0.mlp"][1] == pytest.approx(nats(l0=LEVELS[1]) - nats(), abs=1e-5)
    assert costs["L1.mlp"][0] == pytest.approx(nats(l1=LEVELS[0]) - nats(), abs=1e-5)
    assert costs["L0.mlp"][-1] == costs["L1.mlp"][-1] == 0.0
    dynamick.share_out(dynamic, "loss", 0.4, costs)
    found = [mlp.density for mlp in dynamic_mlps(dynamic).values()]
    assert sum(found) / 2 == pytest.approx(0.4) and found[0] != found[1]
    for budget in ("uniform", "published"):
        dynamick.share_out(dynamic, budget, 0.4)
        assert [mlp.density for mlp in dynamic_mlps(dynamic).values()] == [0.4, 0.4]


def test_published_budgets(model, blocks):
    """One CETT for all layers, and TEAL's shares among matrices: densities and active shares are measured."""
    for rule in ("cett", "teal", "wina"):
        dynamic = dynamick.under_rule(model, rule, IDS)
        dynamick.share_out(dynamic, "published", 0.475)  # an odd number of steps, which two matrices cannot share alike
        quality = dynamick.measure_quality(dynamic, blocks, 4)
        shares = dynamick.shares_of(dynamic, quality.kept)
        cost = dynamick.count_cost(model, dynamic, quality.kept, 16)
        assert cost.density == pytest.approx(sum(shares.values()) / 2) == pytest.approx(0.475, abs=0.06)
        if rule == "cett":
            assert shares["L0.mlp"] != shares["L1.mlp"]
        else:
            assert cost.mlp_flops == pytest.approx(cost.density * flops_per_token(model, 16).mlp_dense)
            assert all(len(set(mlp.shares.values())) == 2 for mlp in dynamic_mlps(dynamic).values())


def test_rules_of_a_routed_model(model, blocks):
    config = slms.RoutingConfig(n_pathways=8, k=2, partition="random")
    routed = slms.route(model, config, IDS)
    dynamick.set_routed_rule(routed, "top_k", None, IDS, 4)
    assert dynamick.measure_quality(routed, blocks, 4).kept["L0.mlp"].neurons == pytest.approx(0.25)
    dynamick.set_routed_rule(routed, "top_k", 0.5, IDS, 4)
    assert dynamick.measure_quality(routed, blocks, 4).kept["L0.mlp"].neurons == pytest.approx(0.5)
    for rule in ("top_p", "threshold"):
        dynamick.set_routed_rule(routed, rule, 0.5, IDS, 4)
        with torch.no_grad():
            unwatched = routed(IDS).logits
            with record_routes(routed) as routes:
                torch.testing.assert_close(unwatched, routed(IDS).logits)
        assert flops_per_token(routed, 16).active_fraction == 1.0  # k varies
        share = routes["L0.mlp"].chosen.float().mean().item()
        assert 0.5 - 1e-6 <= share <= 0.6, rule  # never below what was asked for
    for density in (0.375, None):  # None: that of k, which the density before has set
        dynamick.set_routed_rule(routed, "controlled", density, IDS, 4)
        kept = dynamick.measure_quality(routed, blocks, 4).kept
        assert all(place.neurons == pytest.approx(0.375, abs=0.08) for place in kept.values())
        with torch.no_grad(), record_routes(routed) as routes:
            routed(IDS)
        assert all(len(found.chosen.sum(1).unique()) > 2 for found in routes.values())
    dynamick.set_routed_rule(routed, "controlled", 1.0, IDS, 4)
    assert dynamick.measure_quality(routed, blocks, 4).kept["L0.mlp"].neurons == 1.0
    assert math.isfinite(dynamick.measure_quality(routed, blocks, 4).loss.compute().value)


def test_unknown_rule(model):
    with pytest.raises(ValueError, match=r"--rule top_q: on a dense model it must be one of oracle, .*, router"):
        dynamick.under_rule(model, "top_q", IDS)
