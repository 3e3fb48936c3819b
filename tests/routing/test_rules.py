import doctest
import math

import pytest
import torch

from slms.kernels.router import top_k
from slms.routing import rules
from slms.routing.rules import RULES, Routes, at_least, select, threshold, top_p


def tied_scores(n: int, p: int, seed: int = 0) -> torch.Tensor:
    """Coarse values, so that most rows hold ties."""
    return torch.randint(-3, 4, (n, p), generator=torch.Generator().manual_seed(seed)).float() / 2


@pytest.mark.parametrize(("p", "k"), [(1, 1), (5, 1), (5, 3), (16, 4), (7, 7)])
def test_top_k_takes_the_largest_and_breaks_ties_from_the_left(p, k):
    scores = tied_scores(50, p)
    for row, chosen in zip(scores.tolist(), top_k(scores, k), strict=True):
        expected = sorted(range(p), key=lambda i: (-row[i], i))[:k]
        assert chosen.nonzero().flatten().tolist() == sorted(expected)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 1.0])
def test_top_p_is_the_smallest_set_that_reaches_the_share(share):
    probs = tied_scores(50, 6).double().softmax(-1)
    for row, chosen in zip(probs.tolist(), top_p(probs, share), strict=True):
        expected, total = [], 0.0
        for i in sorted(range(6), key=lambda i: (-row[i], i)):
            if total < share - 1e-12:
                expected.append(i)
                total += row[i]
        assert chosen.nonzero().flatten().tolist() == sorted(expected)


def test_top_p_never_returns_an_empty_set_and_skips_zero_probabilities():
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    assert top_p(probs, 1e-6).sum(-1).tolist() == [1, 1]
    assert top_p(probs, 1.0).tolist() == [[True, False, False], [False, True, True]]


@pytest.mark.parametrize("tau", [0.0, 0.25, 0.5, 1.0])
def test_threshold_keeps_norms_near_the_largest(tau):
    norms = tied_scores(60, 5)
    for row, chosen in zip(norms.tolist(), threshold(norms, tau), strict=True):
        if max(row) > 0 or tau == 1.0:
            expected = [i for i, x in enumerate(row) if max(x, 0.0) >= (1 - tau) * max(row)]
            expected = list(range(5)) if tau == 1.0 else expected
        else:
            expected = [row.index(max(row))]
        assert chosen.nonzero().flatten().tolist() == expected
    assert threshold(norms, tau).any(-1).all()


def test_threshold_does_not_depend_on_the_scale_of_the_norms():
    norms = torch.rand(40, 8)
    assert torch.equal(threshold(norms, 0.4), threshold(norms * 128, 0.4))


def test_controlled_takes_what_exceeds_the_tokens_mean_and_never_nothing():
    scores = tied_scores(60, 6)
    routes = select(scores, rule="controlled", k=2, n_shared=1, least=0.6)
    seen = set()
    for row, chosen in zip(scores[:, 1:].tolist(), routes.chosen.tolist(), strict=True):
        mean = sum(row) / len(row)
        expected = [i for i, x in enumerate(row) if x - mean >= 0.6 - 1e-6] or [row.index(max(row))]
        assert chosen[0] and [i for i, on in enumerate(chosen[1:]) if on] == expected
        seen.add(len(expected))
    assert len(seen) > 2  # k follows the token
    assert at_least(torch.tensor([[-1.0, -2.0]]), 5.0).tolist() == [[True, False]]
    assert select(scores, rule="controlled", k=6, least=0.6).chosen.all()  # k = P is the dense model


def test_unit_gates_are_one_and_pass_the_probabilities_gradient():
    scores = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 5, dtype=torch.float64)
    routes = select(scores, k=2, gate="unit")
    assert torch.equal(routes.gates, routes.chosen.double())
    (gradient,) = torch.autograd.grad((routes.gates * upstream).sum(), scores)
    (expected,) = torch.autograd.grad((scores.softmax(-1) * routes.chosen * upstream).sum(), scores)
    torch.testing.assert_close(gradient, expected)


def test_softmax_gates_sum_to_the_number_chosen():
    routes = select(torch.randn(9, 7), rule="top_p", top_p_share=0.6, gate="softmax")
    torch.testing.assert_close(routes.gates.sum(-1), routes.chosen.sum(-1).float())
    kept = routes.probs * routes.chosen
    torch.testing.assert_close(routes.gates / routes.gates.sum(-1, keepdim=True), kept / kept.sum(-1, keepdim=True))


def test_softmax_gates_are_one_only_at_equal_scores():
    assert torch.allclose(select(torch.zeros(2, 4), k=4, gate="softmax").gates, torch.ones(2, 4))
    assert not torch.allclose(select(torch.randn(2, 4), k=4, gate="softmax").gates, torch.ones(2, 4))


def test_sigmoid_gates():
    scores = torch.randn(9, 7)
    routes = select(scores, k=3, gate="sigmoid")
    torch.testing.assert_close(routes.gates, torch.where(routes.chosen, 1 / (1 + torch.exp(-scores)), 0.0))


def test_graded_gates_start_at_one_with_a_gradient_of_their_own():
    grade = torch.zeros(6, 5, requires_grad=True)
    routes = select(torch.randn(6, 5) + grade, k=2, gate="graded", modulation=grade)
    assert torch.equal(routes.gates, routes.chosen.float())
    (gradient,) = torch.autograd.grad(routes.gates.sum(), grade)
    torch.testing.assert_close(gradient, 0.5 * routes.chosen.float())


def test_blend_gates_start_at_one_end_at_softmax_and_have_its_gradient_throughout():
    scores = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 5, dtype=torch.float64)
    soft = select(scores, k=3, gate="softmax")
    (expected,) = torch.autograd.grad((soft.gates * upstream).sum(), scores)
    for share in (0.0, 0.3, 1.0):
        routes = select(scores, k=3, gate="blend", modulation=torch.tensor(share, dtype=torch.float64))
        torch.testing.assert_close(routes.gates, torch.lerp(routes.chosen.double(), soft.gates, share))
        (gradient,) = torch.autograd.grad((routes.gates * upstream).sum(), scores)
        torch.testing.assert_close(gradient, expected)


def test_ramp_gates_go_from_unit_to_sigmoid_in_value_and_gradient():
    scores = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 5, dtype=torch.float64)
    ends = [select(scores, k=3, gate=gate).gates for gate in ("unit", "sigmoid")]
    gradients = [torch.autograd.grad((gates * upstream).sum(), scores)[0] for gates in ends]
    for share in (0.0, 0.25, 1.0):
        routes = select(scores, k=3, gate="ramp", modulation=torch.tensor(share, dtype=torch.float64))
        (gradient,) = torch.autograd.grad((routes.gates * upstream).sum(), scores)
        torch.testing.assert_close(routes.gates, torch.lerp(*ends, share))
        torch.testing.assert_close(gradient, torch.lerp(*gradients, share))
    assert torch.equal(select(scores, k=3, gate="ramp", modulation=torch.tensor(0.0)).gates, ends[0].detach())


@pytest.mark.parametrize("gate", ["unit", "softmax", "sigmoid"])
@pytest.mark.parametrize("rule", RULES)
def test_gates_are_zero_exactly_where_nothing_is_chosen(rule, gate):
    routes = select(torch.randn(20, 6), rule=rule, k=2, gate=gate, norm_shift=1.0, least=0.3)
    assert torch.equal(routes.gates != 0, routes.chosen)
    assert rule == "relu" or routes.chosen.any(-1).all()
    torch.testing.assert_close(routes.probs.sum(-1), torch.ones(20))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("gate", ["unit", "softmax", "sigmoid"])
def test_shared_pathways_always_run_with_gate_one_and_stay_out_of_the_competition(rule, gate):
    scores = torch.randn(30, 6)
    routes = select(scores, rule=rule, k=4, gate=gate, n_shared=2, norm_shift=2.0, least=0.3)
    alone = select(scores[:, 2:], rule=rule, k=2, gate=gate, norm_shift=2.0, least=0.3)
    assert routes.chosen[:, :2].all() and torch.equal(routes.gates[:, :2], torch.ones(30, 2))
    assert torch.equal(routes.probs[:, :2], torch.zeros(30, 2))
    assert torch.equal(routes.chosen[:, 2:], alone.chosen)
    torch.testing.assert_close(routes.gates[:, 2:], alone.gates)
    torch.testing.assert_close(routes.probs[:, 2:], alone.probs)
    if rule == "top_k":
        assert (routes.chosen.sum(-1) == 4).all()


@pytest.mark.parametrize("rule", RULES)
def test_the_bias_moves_the_choice_but_neither_probabilities_nor_gates(rule):
    scores, bias = torch.randn(50, 4), torch.tensor([9.0, 0.0, 0.0, 0.0])
    plain = select(scores, rule=rule, k=1, gate="sigmoid", norm_shift=1.0, least=0.3)
    biased = select(scores, rule=rule, k=1, gate="sigmoid", norm_shift=1.0, least=0.3, bias=bias)
    assert biased.chosen[:, 0].all() and not plain.chosen[:, 0].all()
    assert torch.equal(biased.probs, plain.probs) and torch.equal(biased.scores, plain.scores)
    torch.testing.assert_close(biased.gates[:, 0], scores[:, 0].sigmoid())


def test_relu_gates_go_from_one_to_the_score_with_its_gradient_throughout():
    scores = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 5, dtype=torch.float64)
    for share in (0.0, 0.25, 1.0):
        routes = select(scores, rule="relu", gate="relu", modulation=torch.tensor(share, dtype=torch.float64))
        assert torch.equal(routes.chosen, scores > 0)
        expected = torch.where(scores > 0, 1 + share * (scores - 1), 0.0)
        torch.testing.assert_close(routes.gates, expected)
        (gradient,) = torch.autograd.grad((routes.gates * upstream).sum(), scores)
        torch.testing.assert_close(gradient, upstream * (scores > 0))


def test_every_pathway_and_one_token():
    routes = select(torch.randn(1, 5), k=5)
    assert isinstance(routes, Routes) and routes.chosen.all() and torch.equal(routes.gates, torch.ones(1, 5))
    assert select(torch.randn(0, 5), k=2).gates.shape == (0, 5)


def test_routing_in_half_precision_is_refused():
    with pytest.raises(AssertionError):
        select(torch.randn(2, 4).bfloat16(), k=1)


@pytest.mark.parametrize(
    ("option", "message"), [({"rule": "best"}, "`routing.rule`"), ({"gate": "hard"}, "`routing.gate`")]
)
def test_unknown_names(option, message):
    with pytest.raises(ValueError, match=message):
        select(torch.randn(2, 4), **option)


def test_no_probability_is_nan_at_extreme_scores():
    routes = select(torch.tensor([[300.0, -300.0, 0.0]]), k=2, gate="softmax")
    assert all(math.isfinite(v) for v in routes.gates.flatten().tolist())


def test_doctests():
    result = doctest.testmod(rules)
    assert result.attempted >= 3 and result.failed == 0
