"""The choice among heads of a group, against sorting by hand."""

import pytest
import torch

from slms.routing import HeadRouter, RoutingConfig
from slms.routing.heads import by_group, heads_config


def test_each_group_keeps_its_best_and_shares_one_probability():
    scores = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    found = by_group(scores, 4, n_groups=2)
    for n in range(50):
        for g in range(2):
            own = scores[n, 3 * g : 3 * g + 3]
            assert set(found.chosen[n, 3 * g : 3 * g + 3].nonzero().flatten().tolist()) == set(
                own.argsort(descending=True)[:2].tolist()
            )
            torch.testing.assert_close(found.probs[n, 3 * g : 3 * g + 3], own.softmax(0))
    assert torch.equal(found.gates, found.chosen.float())


def test_a_bias_changes_the_choice_and_nothing_else():
    scores, bias = torch.tensor([[0.0, 1.0, 0.0, 1.0]]), torch.tensor([2.0, 0.0, 0.0, 0.0])
    plain, moved = by_group(scores, 2, 2), by_group(scores, 2, 2, bias)
    assert plain.chosen.tolist() == [[False, True, False, True]]
    assert moved.chosen.tolist() == [[True, False, False, True]] and torch.equal(moved.probs, plain.probs)


def test_the_configuration_of_heads_counts_them():
    config = RoutingConfig(target="both", n_pathways=5, k=2, k_heads=2, n_shared=1, gate="ramp", rule="top_p")
    heads = heads_config(config, 9, 3)
    assert (heads.n_pathways, heads.k, heads.n_shared, heads.rule, heads.gate) == (9, 6, 0, "top_k", "unit")
    assert config.n_pathways == 5
    assert heads_config(RoutingConfig(target="attention"), 9, 3).k == 9
    with pytest.raises(ValueError, match=r"`routing\.k_heads` is 4; each of this model's 3 groups"):
        heads_config(RoutingConfig(target="attention", k_heads=4), 9, 3)


def test_k_may_be_annealed():
    config = heads_config(RoutingConfig(target="attention", k_heads=1, router="linear"), 6, 2)
    router = HeadRouter(8, config, 2)
    x = torch.randn(5, 8)
    assert router.route(x).chosen.sum(1).tolist() == [2] * 5 and router.route(x, 4).chosen.sum(1).tolist() == [4] * 5
