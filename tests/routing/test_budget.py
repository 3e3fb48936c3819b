"""Densities are set by calibration and held by a controller, whatever a global batch is cut into."""

import doctest
import math

import pytest
import torch

from slms.models.routed_mlp import RoutedMLP
from slms.routing import PathwayRouter, RoutingConfig, budget, set_positive, set_threshold
from slms.routing.budget import (
    FIRST_WEIGHT,
    INTEGRAL,
    LOG_INTEGRAL,
    LOG_PROPORTIONAL,
    PROPORTIONAL,
    AdaptiveL1,
    ThresholdControl,
    budget_of,
    target_density,
)

P, K, D = 16, 5, 8


def router(scale: float = 1.0, **fields) -> PathwayRouter:
    torch.manual_seed(0)
    made = PathwayRouter(
        D, RoutingConfig(**{"n_pathways": P, "k": K, "rule": "controlled", "router": "linear", **fields})
    )
    with torch.no_grad():
        made.out.weight.copy_(scale * torch.randn(P, D) / D**0.5)
        made.out.bias.copy_(scale * torch.randn(P))  # some pathways matter more than others
    return made


def tokens(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_shared", [0, 2])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_threshold_meets_the_density_and_k_follows_the_token(scale, n_shared):
    made, x = router(scale, n_shared=n_shared), tokens(4096)
    set_threshold(made, made(x), target_density(made.config, K))
    counts = made.route(x).chosen.sum(1).float()
    assert counts.mean() == pytest.approx(K, abs=0.1) and counts.min() >= n_shared + 1
    assert counts.std() > 0.5
    assert made.route(x, P).chosen.all()


def test_one_step_from_the_definition():
    made, control = router(), ThresholdControl()
    set_threshold(made, made(tokens(512)), target_density(made.config, K))
    start, spread, errors = float(made.threshold), float(made.spread), []
    for step in range(3):
        routes = made.route(tokens(64, step) * 2 + 0.5)
        control(routes, made.config)
        control.step(made, K)
        errors.append(float(routes.chosen.float().mean()) - K / P)
        expected = start + spread * (PROPORTIONAL * errors[-1] + INTEGRAL * sum(errors))
        assert float(made.threshold) == pytest.approx(expected, abs=1e-5)
    assert any(errors)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_controller_holds_the_density_when_scores_change(scale):
    """Neither a shift of the pathways' scores nor scores a quarter or three times as large move it for long."""
    made, control = router(scale), ThresholdControl()
    set_threshold(made, made(tokens(4096)), target_density(made.config, K))
    for factor in (0.25, 3.0):
        with torch.no_grad():
            made.out.weight.mul_(factor)
            made.out.bias.add_(scale * torch.randn(P, generator=torch.Generator().manual_seed(1)))
        shares = []
        for step in range(120):
            routes = made.route(tokens(512, step))
            control(routes, made.config)
            control.step(made, K)
            shares.append(float(routes.chosen.float().mean()))
        assert sum(shares[80:]) / 40 == pytest.approx(K / P, abs=0.01)
        assert max(abs(share - K / P) for share in shares[80:]) < 0.05


def test_four_micro_batches_are_one_and_evaluation_changes_nothing():
    thresholds, x = [], tokens(256) + 1
    for parts in (1, 4):
        made, control = router(), ThresholdControl()
        for part in x.chunk(parts):
            control(made.route(part), made.config)
        control.step(made, K)
        thresholds.append(float(made.threshold))
        control.eval()
        control(made.route(x), made.config)
        control.step(made, K)  # nothing was counted
        assert float(made.threshold) == thresholds[-1]
    assert thresholds[0] == thresholds[1] != 0.0


def test_every_rank_moves_the_threshold_alike(monkeypatch):
    """A process that counts half of the tokens gets the other half from the reduction."""
    x, made = tokens(256) + 1, [router(), router()]
    halves = [x[:100], x[100:]]
    alone = ThresholdControl()
    alone(made[0].route(x), made[0].config)
    alone.step(made[0], K)
    control = ThresholdControl()
    control(made[1].route(halves[0]), made[1].config)
    others = torch.tensor([int(made[1].route(halves[1]).chosen.sum()), 156 * P])
    monkeypatch.setattr(budget.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(budget.dist, "all_reduce", lambda counts: counts.add_(others))
    control.step(made[1], K)
    assert made[0].threshold == made[1].threshold != 0.0


@pytest.mark.parametrize("n_shared", [0, 2])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_positive_scores_meet_the_density_with_gates_near_one_and_keep_their_order(kind, n_shared):
    made, x = router(rule="relu", router="linear", n_shared=n_shared), tokens(4096)
    if kind == "mlp":
        made = PathwayRouter(D, RoutingConfig(n_pathways=P, k=K, rule="relu", n_shared=n_shared))
    with torch.no_grad():
        before, norms = made(x)[:, n_shared:], torch.rand(4096, P) + made(x).relu()
        set_positive(made, x, norms, target_density(made.config, K))
        after, routes = made(x)[:, n_shared:], made.route(x)
    assert routes.chosen.sum(1).float().mean() == pytest.approx(K, abs=0.01)
    ratio = (after - after.mean(1, keepdim=True)) / (before - before.mean(1, keepdim=True))
    assert ratio.std() < 1e-2 * ratio.mean()
    r, w = after.relu(), norms[:, n_shared:].square()
    assert float((w * r).sum() / (w * r.square()).sum()) == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(routes.gates, routes.chosen.float())  # λ is 0 at first


def test_the_weight_of_the_penalty_from_the_definition():
    made, held = router(rule="relu"), AdaptiveL1()
    errors = []
    for step, shift in enumerate((-0.3, 0.1, -0.2)):
        with torch.no_grad():
            made.out.bias.add_(shift)
        weight = float(held.weight)
        routes = made.route(tokens(64, step))
        penalty = held(routes, made.config)
        assert float(penalty) == pytest.approx(weight * float(routes.scores.relu().mean()))
        held.step(made, K)
        errors.append(float(routes.chosen.float().mean()) / (K / P) - 1)
        expected = FIRST_WEIGHT * math.exp(LOG_PROPORTIONAL * errors[-1] + LOG_INTEGRAL * sum(errors))
        assert float(held.weight) == pytest.approx(expected, rel=1e-4)


def test_a_penalised_router_comes_to_the_density():
    """Against a loss that rewards every positive score."""
    made, held, x = router(rule="relu"), AdaptiveL1(), tokens(512)
    optimizer, shares = torch.optim.Adam(made.parameters(), 0.01), []
    for _ in range(300):
        routes = made.route(x)
        optimizer.zero_grad()
        (held(routes, made.config) - 0.1 * (routes.scores.relu() + 1).log().mean()).backward()
        optimizer.step()
        held.step(made, K)
        shares.append(float(routes.chosen.float().mean()))
    assert shares[0] > K / P + 0.1 and sum(shares[200:]) / 100 == pytest.approx(K / P, abs=0.05)


def test_a_token_without_positive_scores_is_well_defined():
    """It executes nothing: its output is the bias and the means."""
    torch.manual_seed(0)
    config = RoutingConfig(n_pathways=4, k=2, rule="relu", router="linear", mean_compensation=True)
    mlp = RoutedMLP(D, 16, config, activation="gelu", layer_index=0)
    with torch.no_grad():
        mlp.router.out.bias.fill_(-9.0)
        mlp.mean_out.copy_(torch.randn(4, D))
        mlp.b_out.copy_(torch.randn(D))
    for n in (1, 5):
        y = mlp(tokens(n))
        torch.testing.assert_close(y, (mlp.mean_out.sum(0) + mlp.b_out).expand(n, D))
    y.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in mlp.parameters())


def test_which_places_need_a_budget():
    assert budget_of(RoutingConfig()) is None and budget_of(RoutingConfig(rule="threshold")) is None
    assert isinstance(budget_of(RoutingConfig(rule="controlled")), ThresholdControl)
    assert isinstance(budget_of(RoutingConfig(rule="relu")), AdaptiveL1)
    assert budget_of(RoutingConfig(rule="controlled", n_pathways=4, k=4)) is None  # all pathways always
    made = router(rule="top_k")
    assert made.threshold is None and "threshold" not in made.state_dict()
    assert {"threshold", "spread"} <= router().state_dict().keys()


def test_doctests():
    result = doctest.testmod(budget)
    assert result.attempted >= 2 and result.failed == 0
