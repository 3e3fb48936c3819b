"""FLOPs against counts by hand and against PyTorch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slms.models.base import init_base
from slms.models.convert import route
from slms.models.flops import flops_per_token
from slms.routing import RoutingConfig


def test_dense_equals_pytorchs_counter(tiny, tokens, family):
    """Its counter sees eager attention as full t × t products; all else must agree exactly."""
    model, t = tiny(family), 6
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens(1, t))
    counted = counter.get_total_flops()
    rotary = 2 * t * (24 // 4 // 2) if family == "gpt_neox" else 2 * t * 3 if family not in ("gpt_neo", "gpt2") else 0
    config = model.config
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or 24 // 4)
    got = flops_per_token(model, t)
    scores = 3 * 4 * width
    seen = got.total_dense - flops_per_token(model, 1).total_dense + scores  # attention products per token
    assert got.total_dense == got.total_routed and got.active_fraction == 1.0
    assert got.total_dense - seen == pytest.approx((counted - t * scores * t) / t, abs=2 * rotary)


def test_stories_1m_by_hand():
    model = init_base("stories-1m")
    t = 512
    mlp = 8 * 2 * 2 * 64 * 256
    projections = 8 * 4 * 2 * 64 * 64
    head = 2 * 64 * 2048
    every = sum(i + 1 for i in range(t)) / t
    window = sum(min(i + 1, 256) for i in range(t)) / t
    got = flops_per_token(model, t)
    assert got.mlp_dense == mlp
    assert got.total_dense == mlp + projections + head + round(4 * 4 * 64 * every) + round(4 * 4 * 64 * window)


@pytest.mark.parametrize("router, cost", [("mlp", 2 * (64 * 128 + 128 * 16)), ("linear", 2 * 64 * 16)])
def test_routers_and_mean_compensation_are_paid_for(router, cost):
    model = init_base("stories-1m")
    calibration = torch.arange(64).view(2, 32)
    config = RoutingConfig(router=router, router_init="random", mean_compensation=True, partition="random")
    got = flops_per_token(route(model, config, calibration), 256)
    layer = 4 * 64 * 256
    assert got.mlp_routed == 4 * layer + 4 * (layer / 4 + cost + 2 * 16 * 64)
    assert got.active_fraction == (4 + 4 / 4) / 8
    assert got.total_dense - got.total_routed == got.mlp_dense - got.mlp_routed
    assert got.mlp_saving == pytest.approx(1 - got.mlp_routed / (8 * layer))


def test_measured_density_counts():
    model = route(init_base("stories-1m"), RoutingConfig(router="linear", rule="top_k"))
    layer, router = 4 * 64 * 256, 2 * 64 * 16
    assert flops_per_token(model, 8, 1.0).mlp_routed == 8 * layer + 4 * router
    got = flops_per_token(model, 8, {"L0.mlp": 0.5, "L2.mlp": 0.25, "L4.mlp": 0.0, "L6.mlp": 1.0})
    assert got.mlp_routed == 4 * layer + 1.75 * layer + 4 * router and got.active_fraction == (4 + 1.75) / 8
    with pytest.raises(ValueError, match=r"`density` of L0.mlp is 1\.5"):
        flops_per_token(model, 8, 1.5)
    with pytest.raises(ValueError, match="`seq_len` is 0"):
        flops_per_token(model, 0)


def test_an_unmeasured_rule_with_varying_k_counts_everything():
    model = route(init_base("stories-1m"), RoutingConfig(rule="top_p", router="linear"))
    assert flops_per_token(model, 8).active_fraction == 1.0


@pytest.mark.parametrize(
    "router, queries, cost", [("linear", 0.5, 2 * 24 * 4), ("query_norm", 1, 0), ("static", 0.5, 0)]
)
def test_skipped_heads_save_queries_scores_values_and_output_columns(tiny, tokens, router, queries, cost):
    """Llama: 4 heads of 6 on 2 of keys and values, d 24; one of two heads a group, in layer 0 of 3."""
    t, model = 8, tiny("llama")
    config = RoutingConfig(target="attention", k_heads=1, router=router, layers=[0], mean_compensation=True)
    got, dense = flops_per_token(route(model, config, tokens(4, 16)), t), flops_per_token(model, t)
    keys = (t + 1) / 2
    saved = (
        0.5 * (4 * 6 * 24 * 2 + 4 * 4 * 6 * keys) + (1 - queries) * 4 * 6 * 24 * 2
    )  # W_O and scores, values; queries
    assert got.total_dense == dense.total_dense and got.mlp_saving == 0 and dense.head_fraction is None
    assert got.total_dense - got.total_routed == pytest.approx(saved - cost - 2 * 4 * 24)  # router, means
    assert got.head_fraction == pytest.approx((0.5 + 2) / 3) and got.active_fraction == 1.0
    half = flops_per_token(route(model, config, tokens(4, 16)), t, {"L0.attn": 1.0})
    assert half.head_fraction == pytest.approx(1.0)
