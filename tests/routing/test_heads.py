"""The choice among heads of a group, against sorting by hand."""

import pytest
import torch

from slms.routing import HeadRouter, RoutingConfig
from slms.routing.heads import Heads, heads_config


def test_each_group_keeps_its_best_and_shares_one_probability():
    scores = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    found = Heads(2).choose(scores, 4)
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
    plain, moved = Heads(2).choose(scores, 2), Heads(2).choose(scores, 2, bias)
    assert plain.chosen.tolist() == [[False, True, False, True]]
    assert moved.chosen.tolist() == [[True, False, False, True]] and torch.equal(moved.probs, plain.probs)


def test_the_configuration_of_heads_counts_them():
    assert heads_config(RoutingConfig(target="attention", gate="ramp"), 9, 3).gate == "ramp"
    config = RoutingConfig(target="both", n_pathways=5, k=2, k_heads=2, n_shared=1, gate="ramp", rule="top_p")
    heads = heads_config(config, 9, 3)
    assert (heads.n_pathways, heads.k, heads.n_shared, heads.rule, heads.gate) == (9, 6, 0, "top_k", "unit")
    assert config.n_pathways == 5
    assert heads_config(RoutingConfig(target="attention"), 9, 3).k == 9
    with pytest.raises(ValueError, match=r"`routing\.k_heads` is 4; each of this model's 3 groups"):
        heads_config(RoutingConfig(target="attention", k_heads=4), 9, 3)


GATED = {
    "unit": lambda s, p, lam: torch.ones(()),
    "sigmoid": lambda s, p, lam: s.sigmoid(),
    "softmax": lambda s, p, lam: len(s) * s.softmax(0),
    "ramp": lambda s, p, lam: 1 + lam * (s.sigmoid() - 1),
}
"""The gates of the scores s of a token's chosen heads of one group, those that compete"""


@pytest.mark.parametrize("gate", GATED)
def test_shared_heads_run_for_every_token_and_the_best_others_with_their_gates(gate):
    """2 of 4 heads of each of 2 groups, one of them shared; by hand, token by token."""
    config = RoutingConfig(target="attention", k_heads=3, n_shared_heads=1, router="linear", gate=gate)
    router = HeadRouter(8, heads_config(config, 8, 2), 2)
    router.share(torch.tensor([1.0, 4, 2, 3, 9, 7, 9, 1]))
    assert router.shared.nonzero()[:, 0].tolist() == [1, 4]  # of equals the leftmost
    router.selection_bias.copy_(torch.tensor([0, -50.0, 0, 0, -50, 0, 0, 0]))
    if router.ramp is not None:
        router.ramp.fill_(0.3)
    x = torch.randn(40, 8)
    found, scores = router.route(x), router(x)
    for n in range(40):
        for g, others in enumerate(([0, 2, 3], [5, 6, 7])):
            best = sorted(others, key=lambda h: -scores[n, h])[:2]
            assert found.chosen[n, 4 * g : 4 * g + 4].nonzero()[:, 0].add(4 * g).tolist() == sorted([[1, 4][g], *best])
            torch.testing.assert_close(found.probs[n, others], scores[n, others].softmax(0))
            wanted = GATED[gate](scores[n, best], None, 0.3).expand(2)
            torch.testing.assert_close(found.gates[n, best], wanted)
    assert found.gates[:, [1, 4]].eq(1).all() and found.probs[:, [1, 4]].eq(0).all()
    assert found.gates[~found.chosen].eq(0).all()
    (found.gates * torch.randn(40, 8)).sum().backward()
    gradient = router.out.weight.grad
    assert gradient.isfinite().all() and gradient[[1, 4]].eq(0).all() and gradient[[0, 2, 3, 5, 6, 7]].abs().min() > 0


def test_what_chooses_in_place_of_the_router_cannot_leave_shared_heads_out():
    config = RoutingConfig(target="attention", k_heads=2, n_shared_heads=1, router="linear")
    router = HeadRouter(8, heads_config(config, 4, 1), 1)
    router.share(torch.arange(4))
    router.chooser = lambda x, routes: torch.tensor([[True, False, False, False]]).expand(len(x), 4)
    assert router.route(torch.randn(5, 8)).gates.tolist() == [[1.0, 0.0, 0.0, 1.0]] * 5


def test_k_may_be_annealed():
    config = heads_config(RoutingConfig(target="attention", k_heads=1, router="linear"), 6, 2)
    router = HeadRouter(8, config, 2)
    x = torch.randn(5, 8)
    assert router.route(x).chosen.sum(1).tolist() == [2] * 5 and router.route(x, 4).chosen.sum(1).tolist() == [4] * 5
